"""What a comparison will take, before it is run: FLOPs, memory, time and devices, from a run on a stand-in."""
