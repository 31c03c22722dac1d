"""A tiny Idefics3 with random weights, built from its config, and a small tokenizer.

Idefics3 is the architecture of SmolVLM: a SigLIP-like vision tower, pixel shuffle and a Llama decoder. Since it uses
AutoProcessor, a chat template and `<answer> </answer>`, it takes the same code path as a model of 7 B parameters.
"""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from components.settings import TinyModel
from components.shared.model.prompts import INSTRUCTION

PAD, BOS, EOS = "<pad>", "<|im_start|>", "<end_of_utterance>"
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# The space is part of the tag, so that an answer is as short as possible: opening tag, digits, closing tag.
TAGS = ("<answer> ", " </answer>")
VOCABULARY = 512
# Initial weights have standard deviation INIT_SCALE / sqrt(width). transformers' default of 0.02 fits widths around
# 1000; at a width of 100 the signal is too weak and the model learns more slowly.
INIT_SCALE = 0.7

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def build_tokenizer(questions: list[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the questions; each digit is a separate token, and any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, IMAGE, FAKE, GLOBAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    corpus = sorted({f"User: {question} {INSTRUCTION}" for question in questions} | {"Assistant: ", "User:"})
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="left"
    )


def build_processor(settings: TinyModel, questions: list[str]) -> Idefics3Processor:
    """Builds the processor: each image is resized to one square, without tiles."""
    side = {"longest_edge": settings.image_size}
    # Without tiles it always resizes to max_image_size; do_resize would resize a first time before that.
    images = Idefics3ImageProcessorPil(do_resize=False, do_image_splitting=False, size=side, max_image_size=side)
    tokens = (settings.image_size // settings.patch_size // settings.pixel_shuffle) ** 2
    return Idefics3Processor(images, build_tokenizer(questions), image_seq_len=tokens, chat_template=CHAT_TEMPLATE)


def build_model(settings: TinyModel, processor: Idefics3Processor, seed: int) -> Idefics3ForConditionalGeneration:
    """Builds the model with random weights that depend on the seed alone."""
    tokenizer = processor.tokenizer
    pad, bos, eos, image = tokenizer.convert_tokens_to_ids([PAD, BOS, EOS, IMAGE])
    config = Idefics3Config(
        image_token_id=image,
        scale_factor=settings.pixel_shuffle,
        pad_token_id=pad,
        vision_config={
            "hidden_size": settings.vision_width,
            "intermediate_size": 4 * settings.vision_width,
            "num_hidden_layers": settings.vision_layers,
            "num_attention_heads": settings.heads,
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
            "initializer_range": INIT_SCALE * settings.vision_width**-0.5,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": settings.text_width,
            "intermediate_size": 3 * settings.text_width,
            "num_hidden_layers": settings.text_layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.heads,
            "max_position_embeddings": 1024,
            "initializer_range": INIT_SCALE * settings.text_width**-0.5,
            "rms_norm_eps": 1e-5,
            "pad_token_id": pad,
            "bos_token_id": bos,
            "eos_token_id": eos,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(config)
    positions = model.model.vision_model.embeddings.position_embedding
    positions.weight.data.copy_(sinusoidal_positions(settings.image_size // settings.patch_size, settings.vision_width))
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = pad
    model.generation_config.bos_token_id = bos
    return model


def sinusoidal_positions(side: int, width: int) -> torch.Tensor:
    """Returns initial position embeddings of a `side` x `side` grid of patches, `(side**2, width)`.

    Half of the channels encode the row and half the column, as in Vaswani et al. (2017), with unit amplitude. Compared
    to random ones, they let the vision tower learn positions in hundreds of steps instead of thousands. They are
    trained like any other weight.
    """
    frequency = 1.0 / (2.0 * side) ** torch.linspace(0, 1, width // 4)
    angle = torch.arange(side)[:, None] * frequency * torch.pi
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)
