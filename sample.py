"""The student: a 4-bit model with trainable LoRA adapters, and whole trajectories sampled from it.

Four ideas:

- *QLoRA* (arXiv 2305.14314). The base model is frozen in 4-bit NF4, and beside every linear layer
  but the output head two thin matrices learn (LoRA, arXiv 2106.09685): W x becomes
  W x + B (alpha / r) A x. B starts at zero, so at first nothing changes.
- *Text is data.* What a student or a user wrote cannot act as a chat template's control token.
- *Turns.* Where a trajectory asks for a search, what the environment says is put behind it, to be
  read and never to be trained on, and it goes on.
- *On-policy sampling.* A batch of prompts goes on, token by token, from the FULL softmax at the
  sampling temperature. No top-k, no top-p: the loss will take log-probabilities under the full
  softmax at the same temperature, and only if both are one distribution is it on-policy.

    python sample.py                                # what the embedded student says
    python sample.py --task search                  # and when it may search
    python sample.py --student runs/NAME/adapter    # the same with a trained adapter
"""
import argparse
import json
import logging
import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from textwrap import shorten

import huggingface_hub
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tasks import (Problem, UserError, environment, fail_in_one_line, messages, outcome,
                   task_stream)

TINY = Path(__file__).parent / "tiny"


def embedded(task, role):
    """Folder of the embedded "student" or "teacher" of a task."""
    return str(TINY / (role if task == "math" else f"{task}-{role}"))


# ------------------------------------------------------------------------------- loading
def quiet():
    """Leave the screen to this project: errors only from the libraries below."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # but a download shows its bar
    for library in ("bitsandbytes", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


def pick_device():
    """The device to run on: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device, bits):
    """The type to compute in: on a CPU float32, or bfloat16 as stored; on a GPU what it has."""
    if device == "cpu":
        return torch.float32 if bits == 4 else torch.bfloat16
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def load_model(name, bits, device, flag="--student"):
    """(model, tokenizer) of a folder or hub name, all weights frozen. bits: 4 (NF4) or 16.

    Raises UserError, naming `flag`, for what is missing, half-written, unreachable or unfit.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(name)) and not Path(name).is_dir():
        raise UserError(f"{flag} {name}: no such folder; give a model's folder or hub name")
    dtype = pick_dtype(device, bits)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                             bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        model, report = AutoModelForCausalLM.from_pretrained(
            name, quantization_config=nf4 if bits == 4 else None, dtype=dtype,
            device_map={"": device}, use_safetensors=True, output_loading_info=True)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{flag} {name}: too large for the GPU's memory; use --bits 4, or a "
                        "smaller model; python train.py --plan says what fits")
    except Exception as e:  # a dozen kinds, for whatever is missing, broken or out of reach
        why = shorten(str(e), 200) or type(e).__name__
        raise UserError(f"{flag} {name}: cannot be loaded ({why}); give a folder or hub name of a "
                        "causal language model in safetensors, and see that the network is up")
    if report["missing_keys"]:  # transformers fills these with random numbers and goes on
        raise UserError(f"{flag} {name}: {len(report['missing_keys'])} weights are missing, "
                        f"{min(report['missing_keys'])} first; fetch the half-written folder again")
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        lack = "end-of-sequence token" if tokenizer.chat_template else "chat template"
        raise UserError(f"{flag} {name}: its tokenizer has no {lack}; use an instruct model")
    if tokenizer.pad_token_id is None:
        # A filler under a mask of zeros. What is trained is told by a trajectory's own length and
        # never by comparing ids with this one, so a stop token that doubles as padding still is.
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


# ------------------------------------------------------------------------------- LoRA
class LoRALinear(nn.Module):
    """y = W x + B (alpha / r) A x. W: any linear layer, frozen. A (r, in) and B (out, r) learn."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.scale, self.enabled = base, alpha / r, True
        at = dict(device=base.weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **at))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **at))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train()

    def forward(self, x):
        """x (..., in) -> y (..., out)."""
        y = self.base(x)
        if not self.enabled:
            return y
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)  # learn in float32, multiply in x's
        return y + F.linear(self.scale * F.linear(x, A), B)  # scaled where it is thin

    def train(self, mode=True):
        """Stay in train mode, whatever the model does.

        On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit layer that runs in eval mode without
        gradients, as it would when sampled from, and no gradient passes through it from then on.
        """
        return super().train(True)


def add_lora(model, r=8, alpha=16):
    """Put a LoRALinear around every linear layer of `model` but its output head."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoRALinear(layer, r, alpha))


def lora_layers(model):
    """{name: LoRALinear} of a model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@contextmanager
def without_lora(model):
    """Inside this block the model is what it was before any training; no second copy is needed."""
    for layer in lora_layers(model).values():
        layer.enabled = False
    try:
        yield
    finally:
        for layer in lora_layers(model).values():
            layer.enabled = True


def save_adapter(model, folder, base_name):
    """Write the adapters in PEFT's format, for PeftModel.from_pretrained(base, folder)."""
    layers = lora_layers(model)
    first = next(iter(layers.values()))
    r = first.lora_A.shape[0]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": first.scale * r,
              "base_model_name_or_path": str(base_name), "lora_dropout": 0.0, "bias": "none",
              "fan_in_fan_out": False, "inference_mode": True,
              "target_modules": sorted({name.rpartition(".")[2] for name in layers})}
    tensors = {f"base_model.model.{name}.{part}.weight": getattr(layer, part).detach().cpu()
               for name, layer in layers.items() for part in ("lora_A", "lora_B")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / "adapter_model.safetensors")
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2))


def load_adapter(model, folder):
    """Add LoRA to `model`, filled from a folder in PEFT's format. UserError if they do not fit."""
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        add_lora(model, config["r"], config["lora_alpha"])
        for name, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                tensor = tensors.pop(f"base_model.model.{name}.{part}.weight")
                getattr(layer, part).data.copy_(tensor)
        assert not tensors, f"{next(iter(tensors))} has no place in the model"
    except Exception as e:
        raise UserError(f"--student {folder}: not an adapter for this model ({type(e).__name__}: "
                        f"{e}); give the adapter/ folder of a run made with the same student")


def load_student(name, bits, device):
    """(model with LoRA, tokenizer, base's name). name: a model, or the adapter/ of a run."""
    config = Path(name) / "adapter_config.json"
    if not config.exists():
        model, tokenizer = load_model(name, bits, device)
        add_lora(model)
        return model, tokenizer, name
    try:
        base = json.loads(config.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"--student {config}: cannot be read ({e}); give another run's adapter/")
    model, tokenizer = load_model(base, bits, device)
    load_adapter(model, name)
    return model, tokenizer, base


# ------------------------------------------------------------------------------- text is data
def as_data(text, tokenizer):
    """Text with every control token broken by a space, so that "<|im_end|>" in it ends nothing."""
    control = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    for token in sorted(control, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, token[0] + " " + token[1:])
    return text


def chat_ids(tokenizer, conversation):
    """Token ids of a conversation, up to where the model is to speak; no thinking aloud first."""
    safe = [{**m, "content": as_data(m["content"], tokenizer)} for m in conversation]
    text = tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True,
                                         enable_thinking=False)
    return tokenizer.encode(text, add_special_tokens=False)


def left_pad(rows, pad, device):
    """Lists of ids -> ids, attention mask, positions, each (B, T); rows end at the right edge."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def check_words(tokenizer, problem, name):
    """Raise UserError where a student has no words for a problem: the embedded ones know 380."""
    words = tokenizer.encode(problem.question, add_special_tokens=False)
    if words.count(tokenizer.unk_token_id) > len(words) / 4:
        raise UserError(f"--student {name}: it has no words for these problems; name one that "
                        "does, like --student Qwen/Qwen3-0.6B, or give the --task it was made for")


def check_context(model, tokens, advice):
    """Raise UserError where a model is to read or write more tokens than it has positions for."""
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    if tokens > context:
        raise UserError(f"{tokens} tokens are more than the context of {context} of the model "
                        f"{model.config.name_or_path}; {advice}")


# ------------------------------------------------------------------------------- trajectories
@dataclass
class Trajectory:
    """One attempt at one problem, and what is thought of it."""
    problem: Problem
    prompt_ids: list        # tokens of the prompt
    ids: list               # tokens after it, the stop token included
    logprobs: list          # of each of ids when it was sampled, under the full softmax; NaN where
                            # a teacher wrote it, and 0 where the environment did, which is certain
    sampled: list           # of each of ids: 1 = chosen by its author, trained on; 0 = forced
    stopped: bool           # False: cut off at max_new_tokens, or in the middle of a search
    text: str
    reward: float           # R(y), 1: right
    probs: list = field(default_factory=list)  # the teacher's ten probabilities
    score: float | None = None                 # S(y), None where the teacher gave none
    advantage: float | None = None             # A(y), None where it takes no part in the update

    @property
    def right(self):
        """Is the outcome all that it can be?"""
        return self.reward == 1


def stop_ids(model, tokenizer):
    """Every token that ends a turn: the tokenizer's, and those of the generation config."""
    more = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens, until=None):
    """Continue prompts (lists of ids) up to a stop token or the text `until`: [(ids, logprobs)].

    temperature 0 takes the likeliest token. One forward pass a token, keys and values cached, for
    all that have not stopped yet. Raises UserError where the model's context is too short.
    """
    # a prompt that is to be continued N times is read once: `which` of the unique ones is whose
    unique = {p: i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    which = torch.tensor([unique[tuple(p)] for p in prompts], device=model.device)  # (B,)
    ids, mask, positions = left_pad(list(map(list, unique)), tokenizer.pad_token_id, model.device)
    check_context(model, ids.shape[1] + max_new_tokens,
                  f"lower --max-new-tokens {max_new_tokens} or give shorter problems")
    stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=model.device)
    # `until` may be many tokens; of those it can end in, few are ever said, so few texts are made
    ends = {i for word, i in tokenizer.get_vocab().items() if until[-1] in word} if until else ()
    said = [([], []) for _ in prompts]
    rows, cache = torch.arange(len(prompts), device=model.device), None  # rows: who still goes on
    for _ in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # (B, V)
        if cache is None:  # the prompts have been read, and their continuations part ways
            out.past_key_values.batch_select_indices(which)
            logits, mask, positions = logits[which], mask[which], positions[which]
        cache = out.past_key_values
        logprobs = F.log_softmax(logits / (temperature or 1), -1)  # (B, V)
        ids = torch.multinomial(logprobs.exp(), 1) if temperature else \
            logprobs.argmax(-1, keepdim=True)  # (B, 1)
        going = ~torch.isin(ids[:, 0], stops)  # (B,)
        for n, (r, i, lp) in enumerate(zip(rows.tolist(), ids[:, 0].tolist(),
                                           logprobs.gather(1, ids)[:, 0].tolist())):
            said[r][0].append(i)
            said[r][1].append(lp)
            if i in ends and until in tokenizer.decode(said[r][0][-len(until):]):
                going[n] = False
        if not going.any():
            break
        if not going.all():  # who has stopped leaves the batch
            cache.batch_select_indices(going.nonzero()[:, 0])
            ids, mask, positions, rows = ids[going], mask[going], positions[going], rows[going]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = positions[:, -1:] + 1
    return said


def go_on(t, tokenizer, ids, logprobs, sampled):
    """Lengthen trajectory t by tokens of one author; only the environment may say what it said."""
    before = len(tokenizer.decode(t.ids, skip_special_tokens=True))
    t.ids, t.logprobs, t.sampled = t.ids + ids, t.logprobs + logprobs, t.sampled + sampled
    words = tokenizer.decode(t.ids, skip_special_tokens=True)[before:]
    if any(sampled):
        words = re.sub("<(/?information)", r"(\1", words)  # as long as before
    t.text += words


def sample_trajectories(model, tokenizer, problems, temperature=1.0, max_new_tokens=64, batch=256,
                        begun=None):
    """A trajectory for each of `problems` (repeat one N times for a group), `batch` at a time.

    begun: texts the trajectories are to begin with, one each. Those tokens are forced. Where a
    problem has a search, all trajectories that wait for its answer get it and go on together; a
    problem without one is the case of no turns.
    """
    trajectories, begun, stops = [], begun or [""] * len(problems), stop_ids(model, tokenizer)
    encode = lambda text: tokenizer.encode(as_data(text, tokenizer),  # noqa: E731
                                           add_special_tokens=False)
    slices = range(0, len(problems), batch)
    for i in tqdm(slices, desc="sampling", leave=False, disable=len(slices) < 2 or None):
        part = []
        for p, head in zip(problems[i:i + batch], begun[i:i + batch]):
            f = encode(head)
            part.append(Trajectory(p, chat_ids(tokenizer, messages(p)), f, [math.nan] * len(f),
                                   [0] * len(f), False, head, 0.0))  # the head to the letter
        going, until = part, "</search>" if part[0].problem.search else None
        while going:
            said = generate(model, tokenizer, [t.prompt_ids + t.ids for t in going], temperature,
                            max_new_tokens, until)
            for t, (ids, logprobs) in zip(going, said):
                go_on(t, tokenizer, ids, logprobs, [1] * len(ids))
                t.stopped = ids[-1] in stops
            going = [t for t in going if until and not t.stopped and until in last_turn(t)
                     and t.text.count("<information>") < t.problem.search.turns]
            for t in going:
                told = encode("\n" + environment(last_turn(t), t.problem.search) + "\n")
                go_on(t, tokenizer, told, [0.0] * len(told), [0] * len(told))
        for t in part:
            t.text = t.text.strip()
            t.reward = outcome(t.text, t.problem) if t.stopped else 0.0
        trajectories += part
    return trajectories


def last_turn(t):
    """What was said since the environment last spoke."""
    return t.text.rpartition("</information>")[2]


# ------------------------------------------------------------------------------- a look at it
def main():
    """Sample the student on unseen problems and count."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    a = parser.add_argument
    a("--task", choices=["math", "search"], default="math", help="see tasks.py")
    a("--student", help="folder, hub name, or a run's adapter/ [the embedded one]")
    a("--bits", type=int, choices=[4, 16], default=4, help="4: NF4; 16: as stored")
    a("--problems", type=int, default=32, help="how many unseen problems")
    a("--samples", type=int, default=32, help="trajectories for each")
    a("--temperature", type=float, default=1.0, help="0 takes the likeliest token each time")
    a("--max-new-tokens", type=int, default=64, help="a trajectory, or a turn of it, ends here")
    a("--difficulty", type=int, default=1, choices=range(1, 6), help="see tasks.py")
    a("--seed", type=int, default=0, help="of problems and sampling")
    args = parser.parse_args()
    if min(args.problems, args.samples, args.max_new_tokens) < 1 or args.temperature < 0:
        raise UserError("--problems, --samples, --max-new-tokens start at 1, --temperature at 0")
    quiet()
    args.student = args.student or embedded(args.task, "student")
    model, tokenizer, _ = load_student(args.student, args.bits, pick_device())
    torch.manual_seed(args.seed)
    stream = task_stream(args.task, args.seed, args.difficulty, held_out=True)
    problems = list(islice(stream, args.problems))
    check_words(tokenizer, problems[0], args.student)
    began = time.time()
    repeated = [p for p in problems for _ in range(args.samples)]
    ts = sample_trajectories(model, tokenizer, repeated, args.temperature, args.max_new_tokens)
    speed = sum(len(t.ids) for t in ts) / (time.time() - began)
    print(f"{problems[0].question}  ({problems[0].answer})\n")
    for t in ts[:min(args.samples, 8)]:
        p = math.exp(sum(t.logprobs))
        verdict = "right" if t.right else "wrong"
        text = " " + t.text
        if args.task == "search":  # a line for each part, the environment's set apart
            text = re.sub("(?= <search>| <answer>)", "\n      ", text)
            text = text.replace("<information>", "\n          | <information>")
        print(f"  {verdict}  {sum(t.sampled):3d} tokens, p = {p:.1e} {text}")
    right = torch.tensor([float(t.right) for t in ts]).view(len(problems), -1)  # (problems, N)
    print(f"\n{len(ts)} trajectories of {args.bits}-bit {args.student} at {speed:.0f} tokens a "
          f"second: {right.mean():.1%} right; {right.amax(1).mean():.0%} of {len(problems)} "
          f"problems solved at least once in {args.samples}.")


if __name__ == "__main__":
    fail_in_one_line(main)
