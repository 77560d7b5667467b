"""What a model must be before it is used, each fault said in one line that names flag and model.

sample.py and score.py call the functions below.

    python sample.py --student NAME    # loads a model, and refuses one that is unfit
"""
import math
import os
import re
from contextlib import contextmanager
from functools import cache
from textwrap import shorten

import huggingface_hub
import torch

from more.flags import HUB_PAIR, embedded
from more.machine import trim
from more.terminal import UserError


@cache
def hub_answers():
    """Does the hub answer within five seconds? Else only what is on this machine can be had."""
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
        return True
    except Exception:  # no network, or HF_HUB_OFFLINE: each library has its own kind
        return False


def default_student(task, device):
    """The student where none is named: on a GPU the hub's if it can be had, else the embedded."""
    hub = HUB_PAIR["student"]
    if device == "cuda":
        cached = huggingface_hub.try_to_load_from_cache(hub, "config.json")
        if isinstance(cached, str) or hub_answers():
            return hub
        print(f"{hub}, the default for a GPU, cannot be had: the hub does not answer. So it is "
              "the embedded pair")
    return embedded(task, "student")


@contextmanager
def named_errors(flag, name):
    """Inside this block whatever fails while a model is loaded becomes a UserError.

    Yields whether only what is on this machine can be had: it is a folder, or there is no hub.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(name)) and not os.path.isdir(name):
        raise UserError(f"{flag} {name}: no such folder; give a model's folder or hub name")
    try:
        yield os.path.isdir(name) or not hub_answers()
    except Exception as e:  # a dozen kinds: it is missing, broken, out of reach or too large
        why = shorten(str(e), 200) or type(e).__name__
        raise UserError(f"{flag} {name}: cannot be loaded ({why}); give a folder or hub name of a "
                        "causal language model in safetensors, small enough for this machine, and "
                        "see that the network is up")
    finally:
        trim()  # the weights were there in 16-bit before they were in 4-bit


def check_template(tokenizer):
    """Raise ValueError where a chat template, which is a program, fails or leaves out a message."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello 5"}],
                                             tokenize=False, add_generation_prompt=True)
        if "Hello 5" not in text:
            raise ValueError("its chat template leaves out what is said")


def check_model(model, tokenizer, missing_keys, flag, name):
    """Raise UserError where weights, chat template or stop token are missing, or tokens unknown."""
    if missing_keys:  # transformers fills these with random numbers and goes on
        raise UserError(f"{flag} {name}: {len(missing_keys)} weights are missing, "
                        f"{min(missing_keys)} first; fetch the half-written folder again")
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        lack = "end-of-sequence token" if tokenizer.chat_template else "chat template"
        raise UserError(f"{flag} {name}: its tokenizer has no {lack}; use an instruct model")
    stops = getattr(model.generation_config, "eos_token_id", None)
    if not all(isinstance(i, int) for i in (stops if isinstance(stops, list) else [stops or 0])):
        raise UserError(f"{flag} {name}: in its generation_config.json eos_token_id is no token's "
                        "number; fetch it again")
    if max(tokenizer.get_vocab().values()) >= model.get_input_embeddings().num_embeddings:
        raise UserError(f"{flag} {name}: its tokenizer has more tokens than the model knows; fetch "
                        "both anew")


def check_numbers(model, logits):
    """Raise UserError where a model's logits are NaN, as those of a damaged file are."""
    if logits.isnan().any():
        raise UserError(f"the model {model.config.name_or_path} computes NaN; its weights are "
                        "damaged, fetch it again")


def check_words(tokenizer, problem, name, flag="--student"):
    """Raise UserError where a model has no words for a problem: the embedded ones know 380."""
    words = tokenizer.encode(problem.question, add_special_tokens=False)
    if words.count(tokenizer.unk_token_id) > len(words) / 4:
        raise UserError(f"{flag} {name} has no words for these problems; name one that has, "
                        "like Qwen/Qwen3-0.6B, or give the --task that it was made for")


@torch.no_grad()
def check_head(model, ids, flag, name):
    """Raise UserError where logits are more than hidden states times the head's matrix.

    Some families scale or cap them. The losses make them from the states, a chunk at a time, and
    would take them for those of another policy. ids: tokens to try it with.
    """
    ids = torch.tensor([ids], device=model.device)  # (1, T)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state  # (1, T, H)
    product = (hidden @ model.get_output_embeddings().weight.T).float().log_softmax(-1)
    said = model(input_ids=ids).logits.float().log_softmax(-1)  # (1, T, V)
    if (said - product).abs().max() > 0.5:  # nats; it should be rounding
        raise UserError(f"{flag} {name}: its head is more than a matrix product, so use a Qwen- or "
                        "Llama-like model")


def check_student(model, tokenizer, problem, name):
    """Raise UserError where a student has no words for a problem, or cannot be trained here."""
    check_words(tokenizer, problem, name)
    check_head(model, tokenizer.encode(problem.question)[:16], "--student", name)


def check_context(model, tokens, advice):
    """Raise UserError where a model is to read or write more tokens than it has positions for."""
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    if tokens > context:
        raise UserError(f"{tokens} tokens are more than the context of {context} of the model "
                        f"{model.config.name_or_path}; {advice}")


def check_same_vocabulary(tokenizer, teacher, name):
    """Raise UserError where a teacher's tokenizer or head is such that no logits can be matched."""
    if tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UserError("--method logits: student and teacher have different vocabularies, so "
                        "there is nothing to match; use --method ovd, which needs text alone")
    check_head(teacher.model, tokenizer.encode("1 + 2 = 3"), "--teacher", name)
