"""What lossy passes cost and save on the shipped models, beside llama.cpp's formats of the same weights.

    python -m bench.compression                 every row that was not measured before, then tables and pictures
    python -m bench.compression --only gptq     rows whose name contains a word
    python -m bench.compression --check         torch against the reference on some windows

Measured on the whole held-out file in windows of 256 tokens, stride 128, every token scored once, f32 against
changed model on the same windows.
"""
