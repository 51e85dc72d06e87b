"""Models as GGUF files, the format of llama.cpp and what is built on it (Ollama, LM Studio, llamafile).

`write_gguf` writes a tuned model with its tokenizer and chat template, `write_adapter_gguf` a LoRA beside its base.
"""
