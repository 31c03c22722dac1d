"""The tiny model's tokenizer with tags of three tokens, as in Qwen's."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import Idefics3Processor, PreTrainedTokenizerFast

from components.shared.model.tiny import BOS, EOS, PAD, TAGS


def split_tags(tokenizer: Any) -> Tokenizer:
    """The same tokenizer without tokens for whole tags: `<answer>` becomes `<`, `answer`, `>`."""
    known = json.loads(tokenizer.backend_tokenizer.to_str())
    known["added_tokens"] = [token for token in known["added_tokens"] if token["content"] not in TAGS]
    return Tokenizer.from_str(json.dumps(known))


def with_split_tags(processor: Any) -> Idefics3Processor:
    """The tiny model's processor with `split_tags`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split_tags(processor.tokenizer),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
    )
    return Idefics3Processor(
        processor.image_processor,
        tokenizer,
        image_seq_len=processor.image_seq_len,
        chat_template=processor.chat_template,
    )
