"""vLLM as what decodes, where it is installed (Kwon et al. 2023, arXiv 2309.06180). Nothing here is loaded before it is
asked for; which adapted models it takes, and how they get into it, is in `exporting/for_vllm.py`.
"""
