"""Models as files that other programs load: safetensors, adapters for peft, GGUF for llama.cpp and Ollama."""
