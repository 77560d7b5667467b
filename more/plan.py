"""Will it fit? The peak memory of a run, predicted from the shapes of the two models alone.

    python -m more.plan --device cuda --student NAME --teacher NAME    # and all flags of train.py

No weights are loaded and no GPU is needed. Printed are what a run holds throughout and what each
phase puts on top of it, for OVD and for each way to match logits, and for cards of 6 to 24 GB the
flags that make it fit. train.py warns by the same figures before it starts.
"""
import argparse
import json
from itertools import islice
from pathlib import Path
from statistics import mean
from textwrap import shorten
from typing import NamedTuple

from transformers import AutoConfig, AutoTokenizer

from more.data import read_problems
from more.flags import (HUB_PAIR, TINY_PAIRS, WITHOUT_TEACHER, check_run_flags, embedded, fill_in,
                        is_server, run_flags)
from more.ladder import check_writable, free_bytes
from more.machine import pick_device, pick_dtype, reset_peak
from more.terminal import UserError, fail_in_one_line, quiet
from sample import load_student, sample_trajectories
from tasks import problem_stream, task_stream

GB = 1e9
ONEDNN = 3e8  # bytes of code that runs in bfloat16 on a CPU keep, see more/libraries.py


# ------------------------------------------------------------------------------- sizes
class Sizes(NamedTuple):
    """What of a model's shape its memory depends on."""
    layers: int
    hidden: int    # width of the hidden states
    mlp: int       # width inside the MLP
    queries: int   # all attention heads together
    keys: int      # all heads of keys together, as of values
    vocab: int     # rows of the head
    matrices: int  # of vocabulary size: 1 where head and embeddings are one, else 2
    words: int     # how many tokens the tokenizer has

    def linear_weights(self):
        """How many weights the layers have, which are what becomes 4-bit."""
        each = 2 * self.queries + 2 * self.keys + 3 * self.mlp
        return self.layers * self.hidden * each


# What can be planned without a network.
SHAPES = {
    "Qwen/Qwen3-0.6B": Sizes(28, 1024, 3072, 2048, 1024, 151936, 1, 151669),
    "Qwen/Qwen3-1.7B": Sizes(28, 2048, 6144, 2048, 1024, 151936, 1, 151669),
    "Qwen/Qwen3-4B": Sizes(36, 2560, 9728, 4096, 1024, 151936, 1, 151669),
    "Qwen/Qwen3-4B-Instruct-2507": Sizes(36, 2560, 9728, 4096, 1024, 151936, 1, 151669),
    "Qwen/Qwen3-8B": Sizes(36, 4096, 12288, 4096, 1024, 151936, 2, 151669),
    "Qwen/Qwen2.5-0.5B-Instruct": Sizes(24, 896, 4864, 896, 128, 151936, 1, 151665),
    "Qwen/Qwen2.5-1.5B-Instruct": Sizes(28, 1536, 8960, 1536, 256, 151936, 1, 151665),
    "Qwen/Qwen2.5-3B-Instruct": Sizes(36, 2048, 11008, 2048, 256, 151936, 1, 151665),
    "Qwen/Qwen2.5-7B-Instruct": Sizes(28, 3584, 18944, 3584, 512, 152064, 2, 151665),
    "Qwen/QwQ-32B": Sizes(64, 5120, 27648, 5120, 1024, 152064, 2, 151669),
    "meta-llama/Llama-3.2-1B-Instruct": Sizes(16, 2048, 8192, 2048, 512, 128256, 1, 128256),
    "meta-llama/Llama-3.2-3B-Instruct": Sizes(28, 3072, 8192, 3072, 1024, 128256, 1, 128256),
}


def read_sizes(name):
    """Sizes of a folder or hub name, from its config and tokenizer."""
    config = AutoConfig.from_pretrained(name).get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Sizes(config.num_hidden_layers, config.hidden_size, config.intermediate_size,
                 width * config.num_attention_heads, width * config.num_key_value_heads,
                 config.vocab_size, 1 if config.tie_word_embeddings else 2,
                 len(AutoTokenizer.from_pretrained(name)))


def sizes_of(name, flag):
    """Sizes of a model, or of the model below an adapter. UserError where none can be had."""
    try:
        adapter = Path(name) / "adapter_config.json"
        if adapter.exists():
            name = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return SHAPES.get(name) or read_sizes(name)
    except Exception as e:  # as many kinds as in load_model
        raise UserError(f"{flag} {name}: no sizes to plan with ({shorten(str(e), 120)}); "
                        "give a folder, a hub name, or one of " + ", ".join(SHAPES))


def settle(args, device):
    """(args with every open flag filled in as train.py would, Sizes of student, of teacher)."""
    args = argparse.Namespace(**vars(args))
    default = HUB_PAIR if device == "cuda" else TINY_PAIRS[args.task]
    student = sizes_of(args.student or default["student"], "--student")
    # the other defaults go by its size
    fill_in(args, student.linear_weights() < 50e6 > student.vocab * student.hidden, device)
    no_teacher = args.method in WITHOUT_TEACHER
    if no_teacher or args.teacher == "self" or is_server(args.teacher):  # no weights of its own
        return args, student, student._replace(layers=0, matrices=0, words=0)
    return args, student, sizes_of(args.teacher, "--teacher")


# ------------------------------------------------------------------------------- bytes
class Phases(NamedTuple):
    """What each phase of a step holds on top of what is held throughout, in bytes."""
    sampling: float
    teacher: float      # it reads
    activations: float  # of the update: what the layers keep for the backward pass
    loss: float         # of the update: the loss's own


class Work(NamedTuple):
    """What the flags ask of a model, counted in tokens and in bytes a number."""
    number: int      # bytes of a number when computing
    four_bit: bool   # a layer is unpacked before it is used
    on_cpu: bool     # where all of them are, for as long as it samples or updates
    prompt: int      # tokens of a prompt
    new: int         # tokens of a trajectory, which is taken to run to --max-new-tokens

    def rounds_on_cpu(self):
        """Is it a CPU that computes in bfloat16?"""
        return self.on_cpu and self.number == 2

    def holes(self):
        """How much more a CPU holds than is used, of tensors that come and go.

        In bfloat16 they are small, and the holes between them stay with the process. Fitted to the
        runs in RESULTS.md; with float32 no such thing was seen.
        """
        return 1.3 if self.rounds_on_cpu() else 1


def work_of(args, device, real=True):
    """The Work that the flags ask for. real: of no embedded model."""
    four_bit = args.bits == 4
    turns = 1 + args.turns if args.task == "search" else 1
    problems = task_stream(args.task, 0, args.difficulty)
    if args.data and not args.corpus:
        problems = read_problems(args.data, args.question_field, args.answer_field, most=9)
    words = mean(sum(len(m["content"].split()) for m in p.messages(real))
                 for p in islice(problems, 9))
    words += (turns - 1) * (300 if args.corpus else 25)  # what the environment says
    number = pick_dtype(device, real).itemsize if device == "cpu" else 2
    return Work(number, four_bit, device == "cpu", 2 * words,  # 2 tokens a word
                turns * args.max_new_tokens)


def pass_bytes(work, sizes, tokens, adapters=0):
    """A forward pass: the MLP's tensors, the residual's, and a layer unpacked."""
    unpacked = work.four_bit * sizes.hidden * sizes.mlp
    return work.number * (tokens * ((3 + adapters) * sizes.mlp + 2 * sizes.hidden) + unpacked)


def unpacked_bytes(work, sizes):
    """What a CPU unpacks of 4-bit weights for as long as it needs them, see more/quick.py."""
    return work.four_bit * work.on_cpu * work.number * sizes.linear_weights()


def cache_bytes(work, sizes, rows):
    """Keys and values of `rows` trajectories, and a copy: at times they are copied whole."""
    length = work.prompt + work.new
    # What an old copy held is not given back on a CPU at once, and in bfloat16 still less.
    copies = 4 if work.rounds_on_cpu() else 3 if work.on_cpu else 2
    return copies * rows * length * sizes.layers * sizes.keys * work.number


def held_bytes(args, work, student, teacher):
    """{part: bytes held throughout}."""
    linear = student.linear_weights() + teacher.linear_weights()
    # Rank 8, times inputs and outputs of the seven matrices of a layer.
    adapters = 8 * student.layers * (7 * student.hidden + 2 * student.queries + 2 * student.keys
                                     + 3 * student.mlp)
    # In 4-bit a weight has a share in the scales too: 8 bits for 64, 32 bits for 256 of those.
    weight = 0.516 if work.four_bit else work.number
    numbers = sum(m.vocab * m.hidden * m.matrices for m in (student, teacher))
    return {f"{args.bits}-bit weights": weight * linear,
            "embeddings and heads": work.number * numbers,
            "adapters": 4 * adapters, "gradients and AdamW": 12 * adapters,
            "code for bfloat16": ONEDNN if work.rounds_on_cpu() else 0}


def sampling_bytes(args, work, student):
    """The cache, and the larger of reading the prompts and of one row of logits each."""
    logits = args.batch * student.vocab * (work.number + 12)
    # A prompt is read once, and at least two attempts share it: in a test one sampled, one greedy.
    prompts = pass_bytes(work, student, (args.batch + 1) // 2 * work.prompt, 1)
    return (unpacked_bytes(work, student)
            + work.holes() * (cache_bytes(work, student, args.batch) + max(prompts, logits)))


def scoring_bytes(args, work, teacher):
    """The larger of the teacher's writing a solution each and of its reading of attempts."""
    rows = min(max(1, args.batch // 4), args.samples * args.problems)
    tokens = rows * (work.prompt + 2 * work.new + 60)  # problem, solution, attempt, instruction
    ahead = 1 if args.one_shot else args.problems * args.steps  # solutions of all steps at once
    cache = cache_bytes(work, teacher, min(args.batch, ahead))
    writing = unpacked_bytes(work, teacher) + work.holes() * cache
    return max(writing, pass_bytes(work, teacher, tokens))


def update_tokens(args, work):
    """Tokens of a micro-batch. What prompts share is read once, but not with checkpointing."""
    # Attempts at each problem stand together, and so do the texts that replace some of them. A
    # prompt with an example, of 100 tokens and more, has more than half in common with any other.
    shared = 1 if args.one_shot or work.prompt >= 100 else 2 * args.problems
    prompts = args.micro_batch if args.checkpointing else min(args.micro_batch, shared)
    return prompts * work.prompt + args.micro_batch * work.new


def activation_bytes(args, work, student):
    """What the layers keep of a micro-batch for the backward pass."""
    tokens = update_tokens(args, work)
    values = student.keys if args.micro_batch == 1 else student.queries  # repeated under a mask
    # Two norms (float32 in, number out), queries, keys, values, attention's output, four of the
    # MLP's.
    layer = (2 * (4 + work.number) * student.hidden
             + work.number * (2 * student.queries + 2 * values + 4 * student.mlp))
    inputs = student.hidden * work.number * (student.layers if args.checkpointing else 1)
    layers = 1 if args.checkpointing else student.layers
    return (unpacked_bytes(work, student) + work.holes() * (
        tokens * (layers * layer + inputs) + pass_bytes(work, student, tokens, 1)))


def loss_bytes(args, work, student, teacher):
    """{method: bytes of the loss alone}: the states it starts from, and its logits."""
    tokens = args.micro_batch * work.new  # trained on in a micro-batch
    chunk = min(args.chunk or tokens, tokens)
    vocab = min(student.vocab, teacher.vocab)
    states = 3 * tokens * student.hidden * work.number
    both = states + tokens * teacher.hidden * work.number
    return {"ovd": states + 12 * chunk * vocab,
            "logits, sampled token": both + 12 * chunk * vocab,
            "logits, chunked": both + 20 * chunk * vocab,
            "logits, top 64": both + 12 * tokens * vocab + 768 * tokens,
            "logits, dense": both + 20 * tokens * vocab}


def predict(args, student, teacher, device):
    """({part: bytes held throughout}, {method: Phases on top}), from Sizes of student and teacher.

    Counted from what torch keeps for one token in one layer.
    """
    work = work_of(args, device, real=student.vocab > 1000)
    sampling = sampling_bytes(args, work, student)
    scoring = scoring_bytes(args, work, teacher)
    # The teacher reads the student's tokens, where its logits are matched.
    reading = pass_bytes(work, teacher, update_tokens(args, work))
    activations = activation_bytes(args, work, student)
    phases = {method: Phases(sampling, scoring if method == "ovd" else reading, activations, loss)
              for method, loss in loss_bytes(args, work, student, teacher).items()}
    return held_bytes(args, work, student, teacher), phases


def peak_of(predicted, method, base=0):
    """The peak of one method: what is held throughout, and the largest of its phases.

    base: what is there before any model, see base_bytes.
    """
    held, phases = predicted[0], predicted[1][method]
    # OVD's teacher reads before the update, that of logit matching during it.
    during = phases.loss if method == "ovd" else max(phases.teacher, phases.loss)
    return base + sum(held.values()) + max(phases.sampling, phases.teacher,
                                           phases.activations + during)


def base_bytes(device):
    """What is there before any model: CUDA's context, or the interpreter and libraries."""
    if device == "cuda":
        return 6e8  # assumed, not measured; the allocator's figures leave it out
    tiny = embedded("math", "student")  # 1.5 MB: all but nothing
    student, tokenizer, _ = load_student(tiny, 4, "cpu")
    sample_trajectories(student, tokenizer, [next(problem_stream(0))], 1.0, 2)
    return reset_peak("cpu")


# ------------------------------------------------------------------------------- advice
# Flags that save memory, the mildest first.
SAVINGS = [("batch", 16), ("batch", 8), ("micro_batch", 8), ("micro_batch", 1), ("chunk", 64),
           ("batch", 4), ("checkpointing", True), ("batch", 1), ("max_new_tokens", 256),
           ("max_new_tokens", 128), ("max_new_tokens", 64)]


def milder(args, student, teacher, device, base, method, peak):
    """(args with the mildest saving below `peak`, the flag changed, its peak); None: there is none.
    """
    for name, value in SAVINGS:
        trial = argparse.Namespace(**{**vars(args), name: value})
        lower = peak_of(predict(trial, student, teacher, device), method, base)
        if lower < peak:
            return trial, name, lower
    return None


def advice(args, student, teacher, device, base, method, size):
    """"fits" in `size` bytes, or the flags that make it fit, or None if none do."""
    changed, peak = [], peak_of(predict(args, student, teacher, device), method, base)
    while peak > size:
        saving = milder(args, student, teacher, device, base, method, peak)
        if saving is None:
            return None
        args, name, peak = saving
        changed += [name] if name not in changed else []
    return " ".join(as_flag(name, getattr(args, name)) for name in changed) or "fits"


def as_flag(name, value):
    """What to type: --micro-batch 8, or --checkpointing."""
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")


def warn(args, device):
    """Say in one line, before anything is loaded, that a run will hardly fit."""
    try:
        args, student, teacher = settle(args, device)
    except UserError:
        return  # loading will say what is wrong
    method = "ovd"
    if args.method == "logits":
        method = "logits, chunked" if args.chunk else "logits, dense"
    need = peak_of(predict(args, student, teacher, device), method)
    free = free_bytes(device)
    if need > free:
        print(f"warning: this needs about {need / GB:.1f} GB and {free / GB:.1f} GB are free; "
              "python -m more.plan says which flags make it fit")


# ------------------------------------------------------------------------------- the plan
def plan(args, device):
    """Print the plan of a run -> its rows, one a method."""
    args, student, teacher = settle(args, device)
    base, predicted = base_bytes(device), predict(args, student, teacher, device)
    first = "CUDA's context, assumed" if device == "cuda" else "interpreter, libraries"
    held = {first: base, **predicted[0]}
    print(f"predicted for {args.student} taught by {args.teacher} on {device}:\n--batch "
          f"{args.batch} --micro-batch {args.micro_batch} --chunk {args.chunk} --max-new-tokens "
          f"{args.max_new_tokens}\n")
    for part, size in held.items():
        print(f"  {part:24}{size / GB:8.3f} GB")
    columns = "sampling: KV cache", "teacher reads", "update: layers", "its loss", "PEAK, GB"
    print(f"\n{'':21}" + "".join(f"{column:>19}" for column in columns))
    rows = []
    for method, phases in predicted[1].items():
        peak = peak_of(predicted, method, base)
        fits = {card: advice(args, student, teacher, device, base, method, card * GB)
                for card in (6, 8, 12, 16, 24)}
        if method != "ovd" and student.words != teacher.words:
            peak, fits = None, "cannot be matched: the vocabularies differ"
        show_method(method, phases, peak, fits)
        rows.append({"method": method, "held": held, "peak_bytes": peak, **phases._asdict(),
                     "fits": fits})
    return rows


def show_method(method, phases, peak, fits):
    """A method's row, and below it what each card needs, up to the first that needs nothing."""
    if peak is None:
        print(f"{method:21}  {fits}")
        return
    print(f"{method:21}" + "".join(f"{size / GB:19.3f}" for size in (*phases, peak)))
    for card, needed in fits.items():
        print(f"    {card:2} GB: {needed or 'no flag here makes it fit'}")
        if needed == "fits":
            break


def main():
    """Print the plan for train.py's flags."""
    parser = run_flags(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=pick_device(),
                        help="to plan for [what is here]")
    parser.add_argument("--json", help="file for the rows of the plan")
    args = parser.parse_args()
    check_run_flags(args)
    check_writable(args.json)
    quiet()
    rows = plan(args, args.device)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(f"\novd: predicted peak {rows[0]['peak_bytes'] / GB:.2f} GB; no weights were loaded.")


if __name__ == "__main__":
    fail_in_one_line(main)
