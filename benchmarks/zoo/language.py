"""Models of Hugging Face transformers, small and with random weights, and adapters of peft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.zoo.entry import Entry, HuggingFace, words


def _text(labels: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], dict[str, Any]]:
    def batch() -> dict[str, Any]:
        numbers = words()
        mask = torch.ones_like(numbers)
        mask[0, -2:] = 0  # padded
        return {"input_ids": numbers, "attention_mask": mask, "labels": labels(numbers)}

    return batch


def _classes(numbers: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 2, (len(numbers),))


def _next_words(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.clone()


SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def _made(model: str, config: str, **options: Any) -> Callable[[], HuggingFace]:
    def make() -> HuggingFace:
        import transformers

        return HuggingFace(getattr(transformers, model)(getattr(transformers, config)(**options)))

    return make


def _pixels(size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size), "labels": torch.randint(0, 2, (2,))}


def _lora() -> HuggingFace:
    import peft
    import transformers

    base = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **SMALL))
    adapters = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    return HuggingFace(peft.get_peft_model(base, adapters))


def entries() -> Iterator[Entry]:
    """All of them."""

    def entry(name: str, module: Callable[[], Any], batch: Callable[[], Any], library: str = "transformers") -> Entry:
        return Entry(f"hf {name}", library, module, batch)

    yield entry("ViT", _made("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, **SMALL), _pixels())
    yield entry(
        "ResNet",
        _made(
            "ResNetForImageClassification", "ResNetConfig",
            embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 2, 1], num_labels=2,
        ),
        _pixels(),
    )  # fmt: skip
    yield entry(
        "ConvNext",
        _made("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 2, 1]),
        _pixels(),
    )
    bert = {"vocab_size": 50, **SMALL}
    yield entry("BERT", _made("BertForSequenceClassification", "BertConfig", **bert), _text(_classes))
    yield entry("BERT, masked words (tied)", _made("BertForMaskedLM", "BertConfig", **bert), _text(_next_words))
    yield entry(
        "DistilBERT",
        _made(
            "DistilBertForSequenceClassification", "DistilBertConfig",
            vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32,
        ),
        _text(_classes),
    )  # fmt: skip
    gpt = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
    yield entry("GPT-2 (tied)", _made("GPT2LMHeadModel", "GPT2Config", **gpt), _text(_next_words))
    yield entry(
        "GPT-2 (untied)", _made("GPT2LMHeadModel", "GPT2Config", tie_word_embeddings=False, **gpt), _text(_next_words)
    )
    yield entry(
        "Llama", _made("LlamaForCausalLM", "LlamaConfig", vocab_size=50, num_key_value_heads=2, **SMALL),
        _text(_next_words),
    )  # fmt: skip
    yield entry(
        "T5",
        _made(
            "T5ForConditionalGeneration", "T5Config",
            vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0,
        ),
        _text(_next_words),
    )  # fmt: skip
    yield entry(
        "Whisper",
        _made(
            "WhisperForConditionalGeneration", "WhisperConfig",
            vocab_size=50, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=16,
            max_target_positions=16, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        lambda: {"input_features": torch.randn(2, 8, 32), "labels": words()},
    )  # fmt: skip
    yield entry(
        "Wav2Vec2",
        _made(
            "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
            conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 3), num_feat_extract_layers=2, vocab_size=32,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0, classifier_proj_size=8,
            **SMALL,
        ),
        lambda: {"input_values": torch.randn(2, 400), "labels": torch.randint(0, 2, (2,))},
    )  # fmt: skip
    yield entry("BERT with LoRA (peft)", _lora, _text(_classes), library="peft")
