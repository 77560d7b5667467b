"""The student: a 4-bit model with trainable LoRA adapters, and whole trajectories sampled from it.

Four ideas:

- *QLoRA* (arXiv 2305.14314). The base model is frozen in 4-bit NF4, and beside every linear layer
  but the output head two thin matrices learn (LoRA, arXiv 2106.09685): W x becomes
  W x + B (alpha / r) A x. B starts at zero, so at first nothing changes.
- *Text is data.* What a student or a user wrote cannot act as a chat template's control token.
- *On-policy sampling.* A batch of prompts goes on, token by token, from the FULL softmax at the
  sampling temperature. No top-k, no top-p: the loss will take log-probabilities under the full
  softmax at the same temperature, and only if both are one distribution is it on-policy.
- *Turns.* Where the problem has an environment that replies (a search engine, say), its reply is
  put behind the trajectory, to be read and never to be trained on, and the student goes on.

    python sample.py                                # what the embedded student says
    python sample.py --student runs/NAME/adapter    # the same with a trained adapter
    python sample.py --task search                  # with an environment, see more/search.py
    python sample.py --ask "Mia has 3 apples. ..."  # a question of your own
"""
import math
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice

import more.libraries  # first of all, as it loads these quickly
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from more.checks import (check_context, check_model, check_numbers, check_template, check_words,
                         named_errors)
from more.flags import check_sampling_flags, embedded, sampling_flags
from more.machine import pick_device, pick_dtype
from more.quick import distinct, roomy_cache, repair_4bit, shared_prefixes, unpacked
from more.safe_text import as_data
from more.terminal import fail_in_one_line, quiet
from tasks import Problem, task_stream


# ------------------------------------------------------------------------------- loading
def load_model(name, bits, device, flag="--student"):
    """(model, tokenizer) of a name, all frozen. bits: 4 (NF4) or 16 (float32 on most CPUs).

    name: a folder or hub name. UserError, naming `flag`: missing, half-written, unreachable, unfit.
    """
    with named_errors(flag, name) as local:  # what is at hand, where the hub does not answer
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left",  # rows end together
                                                  local_files_only=local)
        check_template(tokenizer)
        dtype = pick_dtype(device, is_real(tokenizer))  # of what is computed, in 4-bit too
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type="nf4",  # 16 levels that suit a normal distribution
            bnb_4bit_use_double_quant=True)  # the scales are quantised as well
        model, report = AutoModelForCausalLM.from_pretrained(
            name, quantization_config=nf4 if bits == 4 else None, dtype=dtype,
            device_map={"": device}, output_loading_info=True,
            use_safetensors=True,  # a pickle could run code
            local_files_only=local)
    check_model(model, tokenizer, report["missing_keys"], flag, name)
    repair_4bit(model)
    if tokenizer.pad_token_id is None:
        # A filler under a mask of 0. Padding is told by masks and never by its id, so that a stop
        # token of the same id is still trained on.
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


# ------------------------------------------------------------------------------- LoRA
class LoRALinear(nn.Module):
    """y = W x + B (alpha / r) A x. W: any linear layer, frozen. A (r, in) and B (out, r) learn.

    enabled: without it the layer is what it was before training.
    """

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.scale, self.enabled = base, alpha / r, True
        at = dict(device=base.weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **at))   # (r, in)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **at))  # (out, r)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT does

    def forward(self, x):
        """x (..., in) -> y (..., out)."""
        y = self.base(x)  # (..., out); W is dequantised here, or for all calls in `unpacked`
        if not self.enabled:
            return y
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)  # learn in float32, multiply in x's
        return y + F.linear(self.scale * F.linear(x, A), B)  # scaled where it is thin


def add_lora(model, r=8, alpha=16):
    """Put a LoRALinear around every linear layer of `model` but its output head."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
            parent, _, child = name.rpartition(".")  # "layers.0.mlp", ".", "up_proj"
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


def load_student(name, bits, device):
    """(model with LoRA, tokenizer, base's name). name: a model, or the adapter/ of a run."""
    if not os.path.exists(os.path.join(name, "adapter_config.json")):
        model, tokenizer = load_model(name, bits, device)
        add_lora(model)
        return model, tokenizer, name
    from more.adapter import base_name, load_adapter  # what a run has learned, in PEFT's format
    base = base_name(name)
    model, tokenizer = load_model(base, bits, device)
    load_adapter(model, name)
    return model, tokenizer, base


# ------------------------------------------------------------------------------- prompts
def chat_ids(tokenizer, conversation):
    """Token ids of a conversation, up to where the model is to speak; no thinking aloud first."""
    # Control tokens in a message are broken. Only the template writes real ones.
    safe = [{**m, "content": as_data(m["content"], tokenizer)} for m in conversation]
    text = tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True,
                                         enable_thinking=False)
    return tokenizer.encode(text, add_special_tokens=False)


@cache
def is_real(tokenizer):
    """Is it no embedded model? Those have no word for \\boxed. None: a server's, taken as real."""
    return not tokenizer or tokenizer.unk_token_id not in tokenizer.encode(r"\boxed{}")


@lru_cache(maxsize=1024)  # those of a test, which comes twice
def prompt_ids(tokenizer, problem):
    """Token ids of a problem's prompt, with the instruction that this model follows."""
    return chat_ids(tokenizer, problem.messages(is_real(tokenizer)))


def left_pad(rows, pad, device):
    """Lists of ids -> ids, attention mask, positions, each (B, T); rows end at the right edge."""
    length = max(map(len, rows))  # T; on the left stands padding, with a mask of 0
    ids = torch.tensor([[pad] * (length - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


# ------------------------------------------------------------------------------- trajectories
@dataclass
class Trajectory:
    """One attempt at one problem, and what is thought of it."""
    problem: Problem
    prompt_ids: list = field(default_factory=list)  # tokens of the prompt
    # Four lists side by side, an entry for each token after the prompt, the stop token included:
    ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)    # when it was sampled; 0 where it was not
    authors: list = field(default_factory=list)     # "student", "teacher" or "environment"
    mask: list = field(default_factory=list)        # 1: trained on; 0: read only
    stopped: bool = False      # False: cut off, or it asked once more than it may
    text: str = ""
    reward: float = 0.0        # R(y), 1: right
    probs: list = field(default_factory=list)       # the teacher's ten probabilities
    score: float | None = None                      # S(y), None where the teacher gave none
    advantage: float | None = None                  # A(y), None where it has no part in the update

    @property
    def right(self):
        """Is the outcome all that it can be?"""
        return self.reward == 1

    def append(self, ids, logprobs, author, mask):
        """Lengthen its four lists by tokens of one author."""
        self.ids, self.logprobs = self.ids + ids, self.logprobs + logprobs
        self.authors, self.mask = self.authors + [author] * len(ids), self.mask + [mask] * len(ids)


def append_turn(t, ids, logprobs, author, mask, tokenizer):
    """Lengthen a trajectory and its text; only the environment may write its own marks."""
    length = len(tokenizer.decode(t.ids, skip_special_tokens=True))  # in characters, so far
    t.append(ids, logprobs, author, mask)
    # Decoded together with what stands before: a token may be half a letter.
    words = tokenizer.decode(t.ids, skip_special_tokens=True)[length:]
    if author != "environment":
        words = re.sub(r"(?i)<(?=\s*/?\s*information)", "(", words)  # forged; the length stays
    t.text += words


def stop_ids(model, tokenizer):
    """Every token that ends a turn: the tokenizer's, and those of the generation config."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def choose(logits, T):
    """A token for each row and its log pi, from logits (b, V) and temperatures T (b, 1): (b, 1).

    From the full softmax at T: no top-k, no top-p. T = 0 takes the likeliest token.
    """
    logprobs = F.log_softmax(logits / T.where(T > 0, 1), -1)  # (b, V)
    ids = logprobs.argmax(-1, keepdim=True)  # (b, 1)
    if T.any():  # some rows are sampled and not greedy
        ids = torch.where(T > 0, torch.multinomial(logprobs.exp(), 1), ids)
    return ids, logprobs.gather(1, ids)


def forward(model, ids, mask, positions, kv):
    """Read ids (b, t) behind what the cache kv holds -> logits after the last one (b, V)."""
    # mask (b, T): of all that was ever read, these ids among it; positions (b, t)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=kv,
                 use_cache=True, logits_to_keep=1).logits[:, -1].float()


def read_beginnings(model, prompts, rows, kv, pad):
    """Prefill kv -> what is left to read of B rows: ids (B, t), mask (B, T), positions (B, t).

    rows: ids of a prompt and of what follows it, if anything. What neighbouring prompts share, but
    for a last token, is read into the cache kv once and copied for each row. kv None: all is left.
    """
    prefixes, source = shared_prefixes(prompts)
    if kv is None or len(prefixes) == len(prompts):  # they have nothing in common
        return left_pad(rows, pad, model.device)
    ids, mask, positions = left_pad(prefixes, pad, model.device)  # (P, s) each
    forward(model, ids, mask, positions, kv)
    kv.batch_select_indices(torch.tensor(source, device=model.device))  # which prefix is whose
    rests = [row[len(prefixes[p]):] for row, p in zip(rows, source)]
    ids, rest_mask, offsets = left_pad(rests, pad, model.device)  # (B, t) each
    return ids, torch.cat([mask[source], rest_mask], 1), positions[source, -1:] + 1 + offsets


@torch.no_grad()
def read_prompts(model, tokenizer, prompts):
    """Read B prompts -> logits after each (B, V), cache, mask (B, T), last positions (B, 1)."""
    kv = roomy_cache(model.config)
    ids, mask, positions = read_beginnings(model, prompts, prompts, kv, tokenizer.pad_token_id)
    logits = forward(model, ids, mask, positions, kv)  # (B, V)
    check_numbers(model, logits)
    return logits, kv, mask, positions[:, -1:]


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens, until=None):
    """Continue prompts (lists of ids) up to a stop token or the text `until`: [(ids, logprobs)].

    temperature: one for all, or a list; 0 takes the likeliest token. One forward pass a token, keys
    and values cached, for all that have not stopped yet. UserError: the context is too short.
    """
    check_context(model, max(map(len, prompts)) + max_new_tokens,
                  f"lower --max-new-tokens {max_new_tokens} or give shorter problems")
    stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=model.device)  # (S,)
    # `until` may be many tokens. Text is decoded only after a token that holds its last character.
    ends = {i for word, i in tokenizer.get_vocab().items() if until[-1] in word} if until else ()
    T = torch.tensor(temperature, device=model.device).expand(len(prompts))[:, None]  # (B, 1)
    results = [([], []) for _ in prompts]  # ids and their log pi, for each prompt
    rows = torch.arange(len(prompts), device=model.device)  # (b,) who has not stopped yet
    unique, source = distinct(prompts)  # a prompt that is to be continued N times is read once
    source = torch.tensor(source, device=model.device)  # (B,) which unique one is whose
    logits, kv, mask, positions = read_prompts(model, tokenizer, unique)
    kv.batch_select_indices(source)  # from here on continuations part ways
    logits, mask, positions = logits[source], mask[source], positions[source]  # (B, ...) each
    # A bar shows where a batch takes more than five seconds, as with a real model on a CPU.
    for step in tqdm(range(max_new_tokens), "one batch", unit="token", leave=False, delay=5,
                     disable=None):
        ids, logprobs = choose(logits, T)  # (b, 1) each
        going = ~torch.isin(ids[:, 0], stops)  # (b,)
        chosen = zip(rows.tolist(), ids[:, 0].tolist(), logprobs[:, 0].tolist())
        for n, (row, i, lp) in enumerate(chosen):
            results[row][0].append(i)
            results[row][1].append(lp)
            if i in ends and until in tokenizer.decode(results[row][0][-len(until):]):
                going[n] = False
        if not going.any() or step + 1 == max_new_tokens:
            break
        if not going.all():  # who has stopped leaves the batch
            kv.batch_select_indices(going.nonzero()[:, 0])
            ids, mask, positions, rows, T = (x[going] for x in (ids, mask, positions, rows, T))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)  # one column more
        positions = positions + 1  # (b, 1)
        logits = forward(model, ids, mask, positions, kv)  # (b, V)
    return results


def begin(tokenizer, problem, text, author):
    """A Trajectory that holds its prompt and the forced beginning `text`, mostly ""."""
    forced = tokenizer.encode(as_data(text, tokenizer), add_special_tokens=False) if text else []
    t = Trajectory(problem, prompt_ids(tokenizer, problem), text=text)
    t.append(forced, [0.0] * len(forced), author, 0)
    return t


def take_turns(model, tokenizer, trajectories, temperatures, max_new_tokens, author):
    """Let a batch of begun trajectories go on until each is over, then look up its outcome R(y).

    Generate, ask the problem for its environment's reply, append that with mask 0, repeat. All that
    wait for a reply go on together. A problem without an environment takes one turn.
    """
    stops, until = stop_ids(model, tokenizer), trajectories[0].problem.until
    going = list(zip(trajectories, temperatures))
    while going:
        # 1. All go on, up to a stop token or to where one of them asks its environment.
        with unpacked(model, merge=True):  # on a CPU: W dequantised once, LoRA added to it
            turns = generate(model, tokenizer, [t.prompt_ids + t.ids for t, _ in going],
                             [temperature for _, temperature in going], max_new_tokens, until)
        waiting = []
        for (t, temperature), (ids, logprobs) in zip(going, turns):
            append_turn(t, ids, logprobs, author, 1, tokenizer)
            # 2. Who has not stopped may have asked for something.
            t.stopped = ids[-1] in stops
            reply = None if t.stopped else t.problem.reply(t.text)
            if reply is not None:  # 3. It is put behind the text, with mask 0.
                words = tokenizer.encode(as_data(f"\n{reply}\n", tokenizer),
                                         add_special_tokens=False)
                append_turn(t, words, [0.0] * len(words), "environment", 0, tokenizer)
                waiting.append((t, temperature))
        going = waiting
    for t in trajectories:  # what was cut off earns nothing
        t.text = t.text.strip()
        if t.problem.answer is not None:  # else nobody knows
            t.reward = t.problem.reward(t.text) if t.stopped else 0.0


def sample_trajectories(model, tokenizer, problems, temperature=1.0, max_new_tokens=64, batch=256,
                        begun=None, author="student"):
    """A Trajectory for each of `problems` (repeat one N times for a group), `batch` at a time.

    temperature: one for all, or a list. begun: texts that the trajectories are to begin with, one
    each. author: who is sampled here; the teacher's own solutions are sampled by the same lines.
    """
    if not isinstance(temperature, list):
        temperature = [temperature] * len(problems)
    trajectories = [begin(tokenizer, problem, text, author)
                    for problem, text in zip(problems, begun or [""] * len(problems))]
    for i in tqdm(range(0, len(problems), batch), "sampling", leave=False, delay=5, disable=None):
        take_turns(model, tokenizer, trajectories[i:i + batch], temperature[i:i + batch],
                   max_new_tokens, author)
    return trajectories


# ------------------------------------------------------------------------------- a look at it
def sample_unseen(args):
    """(student, tokenizer, trajectories): args.samples attempts at each of args.problems."""
    check_sampling_flags(args)
    quiet()
    args.student = args.student or embedded(args.task, "student")
    model, tokenizer, _ = load_student(args.student, args.bits, pick_device())
    torch.manual_seed(args.seed)
    stream = task_stream(args.task, args.seed, args.difficulty, held_out=True)
    # Each problem N times, side by side: its prompt is read once.
    problems = [p for p in islice(stream, args.problems) for _ in range(args.samples)]
    check_words(tokenizer, problems[0], args.student)
    return model, tokenizer, sample_trajectories(model, tokenizer, problems, args.temperature,
                                                 args.max_new_tokens)


def main():
    """Show attempts at one problem, and count how many are right."""
    parser = sampling_flags(__doc__)
    parser.add_argument("--ask", nargs="?", const="", metavar="QUESTION", help="one of your own; "
                        "without it each line of the input is one")
    args, began = parser.parse_args(), time.time()
    if args.ask is not None:
        from more.ask import ask
        return ask(args)
    _, _, trajectories = sample_unseen(args)
    print(f"{trajectories[0].problem.question}  ({trajectories[0].problem.answer})\n")
    for t in trajectories[:args.samples][:8]:
        text = re.sub("(?=<search>|<answer>|<information>)", "\n      ", t.text)  # a turn a line
        print(f"  {'right' if t.right else 'wrong'}  {sum(t.mask):3d} tokens, "
              f"p = {math.exp(sum(t.logprobs)):.1e}  {text}")
    right = torch.tensor([float(t.right) for t in trajectories]).view(-1, args.samples)  # (P, N)
    cut = sum(not t.stopped for t in trajectories) / len(trajectories)
    print(f"\n{len(trajectories)} trajectories of {args.bits}-bit {args.student}, "
          f"{sum(len(t.ids) for t in trajectories):,} tokens in {time.time() - began:.1f} s with "
          f"loading: {right.mean():.1%} right, {cut:.0%} cut off; {right.amax(1).mean():.0%} of "
          f"{args.problems} problems solved at least once in {args.samples}.")


if __name__ == "__main__":
    fail_in_one_line(main)
