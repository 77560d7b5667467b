"""Every flag, its default and its rule: those of sample.py, those of score.py, those of train.py.

Each script has the flags of the one before it and some of its own. A flag's help is its
explanation. What does not go together is refused by check_teacher_flags and check_run_flags, before
anything is loaded.

    python train.py --help    # all of them
"""
from pathlib import Path

from more.terminal import UserError, make_parser, number
from tasks import DIFFICULTY

METHODS = ("ovd", "judge", "grpo", "format", "logits", "sft")
WITHOUT_TEACHER = ("grpo", "format")
WITHOUT_GROUPS = ("logits", "sft")  # methods that compare nothing
TINY = Path(__file__).parent.parent / "tiny"


def embedded(task, role):
    """Folder of the embedded "student" or "teacher" of a task."""
    return str(TINY / (role if task == "math" else f"{task}-{role}"))


def is_server(name):
    """Is a --teacher the address of a server?"""
    return "://" in (name or "")


# ------------------------------------------------------------------------------- the default pairs
# Names apart, they differ in nothing but these numbers.
TINY_PAIRS = {task: dict(
    student=embedded(task, "student"), teacher=embedded(task, "teacher"), difficulty=1, lr=5e-4,
    theta=5.0, max_new_tokens=tokens, batch=256, micro_batch=32, chunk=0, eval_problems=500)
    for task, tokens in (("math", 64), ("search", 32))}
HUB_PAIR = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B-Instruct-2507", difficulty=4,
                lr=5e-5, theta="auto", max_new_tokens=512, batch=32, micro_batch=1, chunk=128,
                eval_problems=500)  # the scores of a real judge sit in a band of its own
# What a real model without a GPU was run with, see RESULTS.md: a step takes half a minute or more.
CPU_PAIR = HUB_PAIR | dict(difficulty=1, lr=2e-4, max_new_tokens=64, batch=64, micro_batch=4,
                           eval_problems=100)


def fill_in(args, small, device):
    """Give args the defaults of its pair. small: an embedded student, of 0.7 million weights."""
    pair = TINY_PAIRS[args.task] if small else HUB_PAIR if device == "cuda" else CPU_PAIR
    vars(args).update((k, v) for k, v in pair.items() if getattr(args, k) is None)


# ------------------------------------------------------------------------------- the flags
def sampling_flags(description):
    """The flags of sample.py, which all others have too."""
    parser = make_parser(description)
    a, count = parser.add_argument, number(int, 1, 10**5)
    a("--task", choices=["math", "search"], default="math", help="math: stories; search: "
      "questions to search for [math]")
    a("--student", help="folder, hub name, or the adapter/ of a run [the embedded one]")
    a("--bits", type=int, choices=[4, 16], default=4, help="4: NF4; 16: not quantised [4]")
    a("--problems", type=count, default=32, help="how many; train.py: a step [%(default)s]")
    a("--samples", type=count, default=32, help="N, sampled for each problem [%(default)s]")
    a("--temperature", type=number(float, 0, 100), default=1.0, help="of the softmax [1]")
    a("--max-new-tokens", type=number(int, 1, 10**6), default=64, help="a turn ends here "
      "[64; train.py: search 32 | 512]")
    a("--difficulty", type=int, choices=DIFFICULTY, default=1, help="of stories, see tasks.py "
      "[1; train.py: 1 | 4]")
    a("--seed", type=number(int, 0, 2**63), default=0, help="of problems and sampling [0]")
    return parser


def teacher_flags(description):
    """The flags of score.py: those of sample.py and those of the teacher."""
    parser = sampling_flags(description)
    a = parser.add_argument
    a("--teacher", help="folder or hub name; http://HOST:PORT/v1 of a server; or self, the student "
      "without its adapters [the embedded one; with a real student the hub's, see train.py]")
    a("--teacher-model", help="its name, where --teacher is a server")
    a("--score", choices=["expected", "digit", "reply"], default="expected", help="S(y): mean over "
      "ten probabilities, the likeliest digit, or the digit of a reply [expected]")
    a("--teacher-sees-answer", action="store_true", help="it reads the right answer as it scores")
    parser.set_defaults(problems=40, samples=8)
    return parser


def threshold(text):
    """A number in 0..9, or "auto"."""
    return text if text == "auto" else number(float, 0, 9)(text)


def run_flags(description):
    """The flags of train.py: those of score.py and those of a run."""
    parser = teacher_flags(description)
    # What is None goes by the pair: --max-new-tokens [64, search 32 | 512], --theta [5 | auto], ...
    parser.set_defaults(problems=4, samples=8, difficulty=None, max_new_tokens=None)
    a, size = parser.add_argument, number(int, 1, 10**6)
    a("--method", choices=METHODS, default="ovd", help="see above [ovd]")
    a("--one-shot", action="store_true", help="ONE random problem is every prompt of the run")
    a("--steps", type=number(int, 0, 10**6), default=16, help="updates [16]")
    a("--theta", type=threshold, help="accepted where S(y) >= theta; auto: the cut that tells "
      "right from wrong best among the first attempts, or with --reward verbal their median "
      "[5 | auto]")
    a("--literal", action="store_true", help="ovd: replace even by what earns no more than the "
      "attempt")
    a("--reward", choices=["outcome", "verbal"], default="outcome", help="R: is the answer right; "
      "or, where nobody knows, the teacher's own score / 9 [outcome]")
    a("--replace", choices=["none", "whole", "suffix"], default="whole", help="ovd: a rejected one "
      "by: nothing; the teacher's own; its good steps and the teacher's continuation [whole]")
    a("--suffix", choices=["trained", "read"], default="trained", help="ovd: is the latter "
      "trained on? [trained]")
    a("--baseline", choices=["none", "own", "mixed", "union"], default="own", help="ovd: "
      "subtracted from R: nothing; the mean of the student's own group before replacement; of the "
      "mixed group (it fails, try it); of both together, the rejected ones staying in [own]")
    a("--lr", type=number(float, 1e-12, 1), help="learning rate of AdamW [5e-4 | 5e-5]")
    a("--kl", type=number(float, 0, 1e6), default=0.0, help="pull to the untrained student [0]")
    a("--eval-problems", type=size, help="unseen ones, to test on [500]")
    a("--turns", type=number(int, 0, 1000), default=4, help="searches a trajectory may make [4]")
    # what the machine can hold
    a("--batch", type=size, help="trajectories sampled side by side [256 | 32]")
    a("--micro-batch", type=size, help="trajectories a backward pass: saves memory [32 | 1]")
    a("--chunk", type=number(int, 0, 10**9), help="tokens a slice of logits, 0: all [0 | 128]")
    a("--checkpointing", action="store_true", help="recompute layers going back: memory for time")
    # problems and passages of your own, see more/README.md
    a("--data", help='problems, {"question": "...", "answer": "..."} a line, a file or '
      "hf://datasets/OWNER/NAME/FILE.jsonl; a fifth is held out")
    a("--eval-data", help="problems to test on in place of that fifth")
    a("--question-field", default="question", help="the question in --data and --eval-data")
    a("--answer-field", default="answer", help="the answer")
    a("--corpus", help="passages to search, JSONL of id, title, text; --data has the questions")
    a("--out", help="folder for the results; a run that was stopped there goes on [runs/<time>]")
    a("--report", action="store_true", help="write a page that shows the run, see more/report.py")
    return parser


# ------------------------------------------------------------------------------- their rules
def check_sampling_flags(args):
    """Refuse a temperature that nothing can be divided by."""
    if 0 < args.temperature < 1e-3:
        raise UserError("--temperature must be 0 or at least 1e-3")


def check_teacher_flags(args):
    """Refuse flags of a teacher that do not go together."""
    if is_server(args.teacher):
        from more.server import check_server
        check_server(args.teacher, args.teacher_model, args.task)
    elif args.teacher_model:
        raise UserError("--teacher-model names a teacher on a server; give --teacher http://...")


def check_run_flags(args):
    """Refuse flags of a run that do not go together; else give them back."""
    check_teacher_flags(args)
    group, server = args.samples * (args.problems if args.one_shot else 1), is_server(args.teacher)
    for wrong, message in (
            (args.temperature < 1e-3, "--temperature is what the loss divides by; give 1e-3 or "
             "more"),
            (group < 2 and args.method not in WITHOUT_GROUPS, f"--samples {args.samples} makes "
             "a group of one, which has no mean to be compared with; use at least 2"),
            (args.method == "logits" and (server or args.teacher == "self"), "--teacher has no "
             "other logits to match; use --method ovd: text alone"),
            (server and args.method == "ovd" and args.replace == "suffix", "--teacher is a server, "
             "which cannot go on from the middle of a text; use --replace whole"),
            (args.reward == "verbal" and args.method not in ("ovd", "judge"), "--reward verbal is "
             "the teacher's score, and only ovd and judge ask for it"),
            (args.replace == "none" and args.baseline == "union" and args.method == "ovd",
             "--baseline union counts the rejected ones, and --replace none drops them; use "
             "--baseline mixed"),
            (args.kl and args.method == "logits", "--kl is no part of --method logits, whose KL is "
             "to the teacher; leave it out"),
            (args.reward == "verbal" and args.teacher_sees_answer, "--teacher-sees-answer: with "
             "--reward verbal there is no answer to see"),
            (max(args.problems * args.samples, args.steps * (args.one_shot or args.problems)) > 1e6,
             f"--steps {args.steps} --problems {args.problems} --samples {args.samples}: more than "
             "a million problems, or attempts a step; lower one of them"),
            (args.corpus and not (args.task == "search" and args.data), "--corpus is for --task "
             "search, with --data for the questions"),
            (args.task == "search" and (args.data or args.eval_data) and not args.corpus, "--data "
             "and --eval-data need --corpus, to find their answers in")):
        if wrong:
            raise UserError(message)
    return args
