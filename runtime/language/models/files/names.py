"""What the files in a model's directory are called: the only table of their names."""

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""One file, or an index of several (`.index.json`); the first that is there is taken."""
WEIGHT_INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS)
BY_LAYERS = ("manifest.json", "latest")
"""By which directories of this package and of DeepSpeed are known, see `runtime.checkpoint`."""
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
QUANTISATION = ("hf_quant_config.json", "quant_config.json", "quantize_config.json")
OTHER_COPIES = ("consolidated", "model.")
"""How names of safetensors files begin that hold the same weights in another way."""
TENSOR_FILES = (".safetensors", ".pt", ".bin", ".pth")
"""How names of files end that hold tensors and nothing else."""

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A tokenizer is one of these; the first that is there is taken."""
TOKENIZER_CONFIG, ADDED_TOKENS, MERGES = "tokenizer_config.json", "added_tokens.json", "merges.txt"
ENCODER_STEPS = "modules.json"

BESIDE_WEIGHTS = frozenset(
    {
        CONFIG,
        *TOKENIZER,
        TOKENIZER_CONFIG,
        ADDED_TOKENS,
        MERGES,
        ENCODER_STEPS,
        "chat_template.jinja",
        "chat_template.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tekken.json",
        "vocab.txt",
        "1_Pooling",
        "2_Normalize",
    }
)
"""The small files of a model: nobody misses them where another model takes their place."""
