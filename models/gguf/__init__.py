"""GGUF, llama.cpp's file format: read as a spec and weights, and written from them."""
