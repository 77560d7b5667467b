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
import ctypes
import logging
import math
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from textwrap import shorten
from unicodedata import category, normalize

import huggingface_hub
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from bitsandbytes.functional import dequantize_4bit
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

from tasks import DIFFICULTY, Problem, UserError, fail_in_one_line, make_parser, number, task_stream

TINY = Path(__file__).parent / "tiny"


def embedded(task, role):
    """Folder of the embedded "student" or "teacher" of a task."""
    return str(TINY / (role if task == "math" else f"{task}-{role}"))


# ------------------------------------------------------------------------------- loading
def quiet():
    """Leave the screen to this project: of the libraries only errors, and a download's bar."""
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    for library in ("transformers", "bitsandbytes", "huggingface_hub"):
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
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(name)) and not os.path.isdir(name):
        raise UserError(f"{flag} {name}: no such folder; give a model's folder or hub name")
    dtype = pick_dtype(device, bits)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                             bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        if tokenizer.chat_template:  # it is a program, and may fail
            chat_ids(tokenizer, [{"role": "user", "content": "?"}])
        model, report = AutoModelForCausalLM.from_pretrained(
            name, quantization_config=nf4 if bits == 4 else None, dtype=dtype,
            device_map={"": device}, use_safetensors=True, output_loading_info=True)
    except Exception as e:  # a dozen kinds: it is missing, broken, out of reach or too large
        why = shorten(str(e), 200) or type(e).__name__
        raise UserError(f"{flag} {name}: cannot be loaded ({why}); give a folder or hub name of a "
                        "causal language model in safetensors, small enough for this machine, and "
                        "see that the network is up")
    if report["missing_keys"]:  # transformers fills these with random numbers and goes on
        raise UserError(f"{flag} {name}: {len(report['missing_keys'])} weights are missing, "
                        f"{min(report['missing_keys'])} first; fetch the half-written folder again")
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        lack = "end-of-sequence token" if tokenizer.chat_template else "chat template"
        raise UserError(f"{flag} {name}: its tokenizer has no {lack}; use an instruct model")
    if max(tokenizer.get_vocab().values()) >= model.get_input_embeddings().num_embeddings:
        raise UserError(f"{flag} {name}: its tokenizer has more tokens than the model knows; fetch "
                        "both anew")
    if tokenizer.pad_token_id is None:
        # A filler under a mask of zeros. What is trained is told by a trajectory's own length and
        # never by comparing ids with this one, so a stop token that doubles as padding still is.
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


# ------------------------------------------------------------------------------- LoRA
class LoRALinear(nn.Module):
    """y = W x + B (alpha / r) A x. W: any linear layer, frozen. A (r, in) and B (out, r) learn.

    enabled: without it the layer is what it was before training. merged: W + B (alpha / r) A.
    """

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.scale, self.enabled, self.merged = base, alpha / r, True, None
        at = dict(device=base.weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **at))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **at))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train()

    def forward(self, x):
        """x (..., in) -> y (..., out)."""
        if self.merged is not None:
            return F.linear(x, self.merged, self.base.bias)
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


@contextmanager
def merged_lora(model):
    """Inside this block W + B (alpha / r) A is one float32 matrix a layer: sampling is quicker.

    Many tokens are sampled between two updates, and to unpack W for each takes longer than to use
    it. Only on a CPU, which computes 4-bit layers in float32. Rounded to 16 bits the sum would be
    another policy than the one that is trained, and a GPU's memory is what 4-bit is for.
    """
    layers = [layer for layer in lora_layers(model).values() if model.device.type == "cpu"
              and hasattr(layer.base.weight, "quant_state")]  # the 4-bit ones
    for layer in layers:
        W = dequantize_4bit(layer.base.weight.data, layer.base.weight.quant_state)  # (out, in)
        layer.merged = W + layer.enabled * layer.scale * layer.lora_B @ layer.lora_A
    try:
        yield
    finally:
        for layer in layers:
            layer.merged = None


def keep_freed_memory(keep):
    """Have glibc keep freed memory for the next tensor, or give it back to the system.

    For each token the cache is made anew, a little longer. Large blocks come from the system, and
    to get their pages can take as long as all the rest of a long text.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0 if keep else 65536)  # M_MMAP_MAX, blocks with pages of their own
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, from which size on; glibc's own maximum
        libc.mallopt(-1, 2**31 - 1 if keep else 1 << 26)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)


def load_student(name, bits, device):
    """(model with LoRA, tokenizer, base's name). name: a model, or the adapter/ of a run."""
    if not os.path.exists(os.path.join(name, "adapter_config.json")):
        model, tokenizer = load_model(name, bits, device)
        add_lora(model)
        return model, tokenizer, name
    from more.adapter import base_name, load_adapter
    base = base_name(name)
    model, tokenizer = load_model(base, bits, device)
    load_adapter(model, name)
    return model, tokenizer, base


# ------------------------------------------------------------------------------- text is data
# Marks of chat templates, for a reader to whom they are no tokens: "<|user|>", "[INST]", "</s>".
TEMPLATE_MARK = (r"<[|｜]|\[\||<<SYS|\[/?(?:INST|SYSTEM_PROMPT)\]"
                 r"|</?(?:s|bos|eos|(?:start|end)_of_turn)>")


def break_marks(text, pattern, first=r"\1 "):
    """Text with a space after the first character of all that matches, as a reader sees it.

    To a reader full-width letters are letters (NFKC), and zero-width characters (Cf) are not there.
    Where nothing matches, nothing changes.
    """
    seen = text
    if not text.isascii():
        seen = normalize("NFKC", "".join(c for c in text if category(c) != "Cf"))
    broken = re.sub(f"(?=(?:{pattern}))(.)", first, seen, flags=re.IGNORECASE)
    return text if broken == seen else broken


@cache
def control_pattern(tokenizer):
    """What may act as a control token: TEMPLATE_MARK, and the added tokens of the tokenizer."""
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} if tokenizer else set()
    # Blank ones are text: Gemma has "\n\n" among its added tokens.
    return "|".join([TEMPLATE_MARK, *(re.escape(t) for t in tokens if len(t.strip(" \n▁")) > 1)])


def as_data(text, tokenizer=None):
    """Text with every control token broken, so that "<|im_end|>" in it ends nothing."""
    return break_marks(text, control_pattern(tokenizer))


def chat_ids(tokenizer, conversation):
    """Token ids of a conversation, up to where the model is to speak; no thinking aloud first."""
    safe = [{**m, "content": as_data(m["content"], tokenizer)} for m in conversation]
    text = tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True,
                                         enable_thinking=False)
    return tokenizer.encode(text, add_special_tokens=False)


@cache
def is_real(tokenizer):
    """Was a model raised elsewhere? The embedded ones have no word for \\boxed. None: a server."""
    return not tokenizer or tokenizer.unk_token_id not in tokenizer.encode(r"\boxed{}")


def prompt_ids(tokenizer, problem):
    """Token ids of a problem's prompt, with the instruction that this model follows."""
    return chat_ids(tokenizer, problem.messages(is_real(tokenizer)))


def check_numbers(model, logits):
    """Raise UserError where a model's logits are NaN, as those of a damaged file are."""
    if logits.isnan().any():
        raise UserError(f"the model {model.config.name_or_path} computes NaN; its weights are "
                        "damaged, fetch it again")


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
        raise UserError(f"--student {name} has no words for these problems; name one that has, "
                        "like Qwen/Qwen3-0.6B, or give the --task that it was made for")


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
    prompt_ids: list = field(default_factory=list)  # tokens of the prompt
    # Four lists side by side, an entry for each token after the prompt, the stop token included:
    ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)    # when it was sampled; 0 where it was not
    authors: list = field(default_factory=list)     # "student", "teacher" or "environment"
    mask: list = field(default_factory=list)        # 1: trained on; 0: read only
    stopped: bool = False      # False: cut off at max_new_tokens, or in the middle of a turn
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
    length = len(tokenizer.decode(t.ids, skip_special_tokens=True))
    t.append(ids, logprobs, author, mask)
    # Decoded together with what stands before: a token may be half a letter.
    words = tokenizer.decode(t.ids, skip_special_tokens=True)[length:]
    if author != "environment":
        words = re.sub("<(/?information)", r"(\1", words)  # forged marks; the length stays
    t.text += words


def stop_ids(model, tokenizer):
    """Every token that ends a turn: the tokenizer's, and those of the generation config."""
    more = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}


def choose(logits, T):
    """A token for each row and its log pi, from logits (b, V) and temperatures T (b, 1): (b, 1).

    From the full softmax at T: no top-k, no top-p. T = 0 takes the likeliest token.
    """
    logprobs = F.log_softmax(logits / T.where(T > 0, 1), -1)  # (b, V)
    ids = logprobs.argmax(-1, keepdim=True)
    if T.any():
        ids = torch.where(T > 0, torch.multinomial(logprobs.exp(), 1), ids)
    return ids, logprobs.gather(1, ids)


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens, until=None):
    """Continue prompts (lists of ids) up to a stop token or the text `until`: [(ids, logprobs)].

    temperature: one for all, or a list; 0 takes the likeliest token. One forward pass a token, keys
    and values cached, for all that have not stopped yet. UserError: the context is too short.
    """
    # A prompt that is to be continued N times is read once. source: which unique one is whose.
    unique = {p: i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    source = torch.tensor([unique[tuple(p)] for p in prompts], device=model.device)  # (B,)
    ids, mask, positions = left_pad(list(map(list, unique)), tokenizer.pad_token_id, model.device)
    check_context(model, ids.shape[1] + max_new_tokens,
                  f"lower --max-new-tokens {max_new_tokens} or give shorter problems")
    stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=model.device)
    # `until` may be many tokens. Text is made and searched only after those it can end in.
    ends = {i for word, i in tokenizer.get_vocab().items() if until[-1] in word} if until else ()
    T = torch.tensor(temperature, device=model.device).expand(len(prompts))[:, None]  # (B, 1)
    results, kv = [([], []) for _ in prompts], DynamicCache(config=model.config)
    rows = torch.arange(len(prompts), device=model.device)  # (b,) who has not stopped yet
    # A bar shows where a batch takes more than five seconds, as with a real model on a CPU.
    for step in tqdm(range(max_new_tokens), "one batch", unit="token", leave=False, delay=5,
                     disable=None):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=kv,
                       use_cache=True, logits_to_keep=1).logits[:, -1].float()  # (b, V)
        if step == 0:  # the prompts have been read, and their continuations part ways
            check_numbers(model, logits)
            kv.batch_select_indices(source)
            logits, mask, positions = logits[source], mask[source], positions[source]
        ids, logprobs = choose(logits, T)  # (b, 1) each
        going = ~torch.isin(ids[:, 0], stops)  # (b,)
        for n, (row, i, lp) in enumerate(zip(rows.tolist(), ids[:, 0].tolist(),
                                             logprobs[:, 0].tolist())):
            results[row][0].append(i)
            results[row][1].append(lp)
            if i in ends and until in tokenizer.decode(results[row][0][-len(until):]):
                going[n] = False
        if not going.any():
            break
        if not going.all():  # who has stopped leaves the batch
            kv.batch_select_indices(going.nonzero()[:, 0])
            ids, mask, positions, rows, T = (
                x[going] for x in (ids, mask, positions, rows, T))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)  # (b, T + 1)
        positions = positions[:, -1:] + 1  # (b, 1)
    return results


def begin(tokenizer, problem, text, author):
    """A Trajectory that holds its prompt and the forced beginning `text`, mostly ""."""
    forced = tokenizer.encode(as_data(text, tokenizer), add_special_tokens=False)
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
        keep_freed_memory(True)
        with merged_lora(model):
            turns = generate(model, tokenizer, [t.prompt_ids + t.ids for t, _ in going],
                             [temperature for _, temperature in going], max_new_tokens, until)
        keep_freed_memory(False)
        waiting = []
        for (t, temperature), (ids, logprobs) in zip(going, turns):
            append_turn(t, ids, logprobs, author, 1, tokenizer)
            t.stopped = ids[-1] in stops
            reply = None if t.stopped else t.problem.reply(t.text)
            if reply is not None:
                words = tokenizer.encode(as_data(f"\n{reply}\n", tokenizer),
                                         add_special_tokens=False)
                append_turn(t, words, [0.0] * len(words), "environment", 0, tokenizer)
                waiting.append((t, temperature))
        going = waiting
    for t in trajectories:
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


def entropy(trajectories):
    """Nats a token, as the mean of -log pi over what the student chose; NaN where that is none."""
    chosen = [lp for t in trajectories for lp, author, trained in zip(t.logprobs, t.authors, t.mask)
              if author == "student" and trained]
    return -sum(chosen) / len(chosen) if chosen else math.nan


# ------------------------------------------------------------------------------- a look at it
def flags(description):
    """The flags that sample.py, score.py and train.py share."""
    parser = make_parser(description)
    a, count = parser.add_argument, number(int, 1, 10**5)
    a("--task", choices=["math", "search"], default="math", help="math: stories; search: "
      "questions to search for [math]")
    a("--student", help="folder, hub name, or the adapter/ of a run [the embedded one]")
    a("--bits", type=int, choices=[4, 16], default=4, help="4: NF4; 16: as stored [4]")
    a("--problems", type=count, default=32, help="how many; train.py: a step [%(default)s]")
    a("--samples", type=count, default=32, help="N, sampled for each problem [%(default)s]")
    a("--temperature", type=number(float, 0, 100), default=1.0, help="of the softmax [1]")
    a("--max-new-tokens", type=number(int, 1, 10**6), default=64, help="a turn ends here "
      "[64; train.py: search 32 | 512]")
    a("--difficulty", type=int, choices=DIFFICULTY, default=1, help="of stories, see tasks.py "
      "[1; train.py: 1 | 4]")
    a("--seed", type=number(int, 0, 2**63), default=0, help="of problems and sampling [0]")
    return parser


def sample_unseen(args):
    """(student, tokenizer, trajectories): args.samples attempts at each of args.problems."""
    if 0 < args.temperature < 1e-3:
        raise UserError("--temperature must be 0 or at least 1e-3")
    quiet()
    args.student = args.student or embedded(args.task, "student")
    model, tokenizer, _ = load_student(args.student, args.bits, pick_device())
    torch.manual_seed(args.seed)
    stream = task_stream(args.task, args.seed, args.difficulty, held_out=True)
    problems = [p for p in islice(stream, args.problems) for _ in range(args.samples)]
    check_words(tokenizer, problems[0], args.student)
    return model, tokenizer, sample_trajectories(model, tokenizer, problems, args.temperature,
                                                 args.max_new_tokens)


def main():
    """Show attempts at one problem, and count how many are right."""
    parser = flags(__doc__)
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
    right = torch.tensor([float(t.right) for t in trajectories]).view(-1, args.samples)
    print(f"\n{len(trajectories)} trajectories of {args.bits}-bit {args.student}, "
          f"{sum(len(t.ids) for t in trajectories):,} tokens in {time.time() - began:.1f} s with "
          f"loading: {right.mean():.1%} right; {right.amax(1).mean():.0%} of {args.problems} "
          f"problems solved at least once in {args.samples}.")


if __name__ == "__main__":
    fail_in_one_line(main)
