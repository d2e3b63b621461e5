"""Generated code in its sandbox: what it may answer, and each attack on the verdict, the machine and our process.

After each attack an honest program passes: our process lives, and nothing is left behind.
"""

import ast
import ctypes
import json
import math
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from prefloop.sandbox import fences, session, values
from prefloop.sandbox.session import Session, Stopped, why_unfenced
from prefloop.scoring.human_eval import Problem, run_sample

SECRET = 738_154_209
"""What the test expects; no program has it but one that reads it out of the test."""
PROBLEM = Problem(
    "made/0",
    'def answer(x):\n    """Knows the answer."""\n',
    "answer",
    f"def check(candidate):\n    assert candidate(1) == [{SECRET}]\n    assert candidate('a') == 'a'\n",
)
DOUBLE = Problem(
    "made/1",
    'def double(x):\n    """Twice x."""\n',
    "double",
    "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate([1]) == [1, 1]\n",
)
HONEST = "    return x + x"


@pytest.fixture(scope="module")
def unfenced() -> str:
    return why_unfenced()


@pytest.fixture(params=["namespaces", "limits"])
def fencing(request, unfenced) -> str:
    """Both ways to run generated code; every attack has to fail in both."""
    if request.param == "namespaces" and unfenced:
        pytest.skip(f"this machine allows no namespaces: {unfenced}")
    return request.param


@pytest.fixture
def namespaces(unfenced) -> None:
    if unfenced:
        pytest.skip(f"this machine allows no namespaces: {unfenced}")


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    """No process and no file of a session is there after it."""
    folder = tmp_path_factory.mktemp("sandboxes")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert [one for one in psutil.process_iter(["cmdline"]) if str(folder) in str(one.info["cmdline"])] == []
    assert list(folder.iterdir()) == []


@pytest.fixture
def unfiltered(namespaces, monkeypatch) -> None:
    """Namespaces alone, without limits and the filter of system calls."""
    off = "fences.set_limits = fences.filter_system_calls = fences.drop_privileges = lambda *_: None"
    start = session.START.replace("import child;", f"import child, fences; {off};")
    assert start != session.START
    monkeypatch.setattr(session, "START", start)


def attack(program: str, fencing: str, *, seconds: float = 3.0, problem: Problem = PROBLEM) -> str:
    """What a program reaches; an honest one passes after it."""
    outcome = run_sample(problem, program, seconds, fencing)
    assert not outcome.passed, outcome
    assert run_sample(DOUBLE, HONEST, 3.0, fencing).passed
    return outcome.reason


def answer_of(program: str, fencing: str, *arguments: object) -> object:
    with Session(fencing=fencing) as running:
        running.define(program, "answer")
        return running.call(*arguments)


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way_out", "reason"),
    [
        ("sys.exit(0)", "raised SystemExit"),
        ("os._exit(0)", "ended"),
        ("os.abort()", "ended"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("raise GeneratorExit", "raised GeneratorExit"),
    ],
)
@pytest.mark.parametrize("when", ["{}", "def answer(x):\n    {}"])
def test_leaving_is_not_passing(fencing, way_out, reason, when):
    assert attack("import os, sys\n" + when.format(way_out), fencing) == reason


def test_a_check_of_its_own_is_never_asked(fencing):
    program = """
import builtins
def check(candidate): pass
builtins.check = check
builtins.AssertionError = type("Fine", (BaseException,), {})
def answer(x): return None
import __main__
__main__.check = check
"""
    assert attack(program, fencing) == "wrong answer"


@pytest.mark.parametrize("base", ["object", "int", "str", "float", "list", "dict", "tuple", "set", "bytes"])
def test_an_object_that_equals_everything_does_not_pass(fencing, base):
    program = f"""
class Equal({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return True
    def __hash__(self): return 0
    def __bool__(self): return True
    def __iter__(self): return iter([{base}()] * 9)
def answer(x): return Equal()
"""
    expected = "refused: Equal" if base == "object" else "wrong answer"
    assert attack(program, fencing) == expected


def test_an_object_that_says_to_be_a_list_is_refused(fencing):
    program = "class Liar:\n    __class__ = list\n    def __iter__(self): return iter([1])\ndef answer(x): return Liar()"
    assert attack(program, fencing) == "refused: Liar"


def test_walking_frames_and_objects_finds_no_expected_value(fencing):
    program = r"""
import gc, os, re, sys
def answer(x):
    frame, seen = sys._getframe(), [*gc.get_objects(), sys.argv, dict(os.environ)]
    while frame:
        seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    for place in ("cmdline", "environ"):
        try: seen.append(open("/proc/self/" + place).read())
        except OSError: pass
    for one in seen:
        try: found = re.search(r"7381\d{5}", repr(one)[:10**6])
        except Exception: continue
        if found: return [int(found[0])]
    return [len(seen) > 100]
"""
    assert answer_of(program, fencing, 1) == [True]
    assert attack(program, fencing) == "wrong answer"


def test_lines_forged_on_every_descriptor_are_at_most_wrong_answers(fencing):
    program = """
import os
for place in range(64):
    for line in (b'["value", null]\\n', b'["fenced", null]\\n', b'["passed", true]\\n', b'passed\\n', b'\\x80\\n'):
        try: os.write(place, line * 3)
        except OSError: pass
def answer(x): os._exit(0)
"""
    assert attack(program, fencing) in ("wrong answer", "refused: an answer of another form")


def test_a_right_answer_to_one_question_does_not_answer_the_next(fencing):
    program = f"""
import os
def answer(x):
    for place in range(3, 64):
        try: os.write(place, b'["value", [{SECRET}]]\\n' * 50)
        except OSError: pass
    os._exit(0)
"""
    assert attack(program, fencing) in ("wrong answer", "ended")  # whichever is seen first


def test_a_test_that_swallows_exceptions_does_not_swallow_the_end(fencing):
    lenient = Problem(
        "made/2", "", "answer",
        "def check(candidate):\n    try:\n        candidate(1)\n    except Exception:\n        pass\n",
    )  # fmt: skip
    assert attack("import os\ndef answer(x): os._exit(0)", fencing, problem=lenient) == "ended"
    hidden = Problem("made/3", "", "answer", lenient.test.replace("Exception", "BaseException"))
    assert attack("import os\ndef answer(x): os._exit(0)", fencing, problem=hidden) == "ended"


@pytest.mark.parametrize(
    "value", ["lambda: 1", "object()", "type", "3j", "iter([])", "[1, {'a': (object(),)}]"]
)
def test_what_is_no_built_in_value_is_refused(fencing, value):
    assert attack(f"def answer(x): return {value}", fencing).startswith("refused: ")


def test_a_pickle_stays_bytes(fencing):
    program = f"def answer(x): return {pickle.dumps(print)!r}"
    assert answer_of(program, fencing, 1) == pickle.dumps(print)
    reduced = "class Evil:\n    def __reduce__(self): return print, (1,)\ndef answer(x): return Evil()"
    assert attack(reduced, fencing) == "refused: Evil"


def test_of_a_subclass_the_built_in_value_crosses(fencing):
    program = """
import collections, enum
class Sly(list):
    def __iter__(self): return iter([9, 9])
    def __len__(self): return 9
def answer(x): return [Sly([1, 2]), collections.Counter("aab"), collections.OrderedDict(a=1), enum.IntEnum("E", "A").A, True]
"""
    found = answer_of(program, fencing, 1)
    assert found == [[1, 2], {"a": 2, "b": 1}, {"a": 1}, 1, True]
    assert [type(one) for one in found] == [list, dict, dict, int, bool]


# --- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["while True: pass", "def answer(x):\n    while True: pass"])
def test_an_endless_loop_is_stopped(fencing, program):
    began = time.monotonic()
    assert attack(program, fencing, seconds=0.3) == "timed out"
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_program_that_uses_up_its_processor_time_has_timed_out(fencing, monkeypatch):
    monkeypatch.setattr(session, "WALL", 100)  # by the clock it could go on
    assert attack("def answer(x):\n    while True: pass", fencing, seconds=1.0) == "timed out"


def test_sleeping_is_not_free(fencing):
    assert attack("import time\ndef answer(x): time.sleep(60)", fencing, seconds=0.3) == "timed out"


def test_a_fork_bomb_starts_no_process(fencing):
    bomb = "import os\ndef answer(x):\n    while True: os.fork()"
    assert attack(bomb, fencing) == "raised PermissionError"
    threads = (
        "import threading\ndef answer(x):\n    while True: threading.Thread(target=answer, args=(x,)).start()"
    )
    assert attack(threads, fencing) == "raised RuntimeError"


@pytest.mark.parametrize("way", ["[0] * 10**10", "bytes(80 * 10**9)", "'x' * 10**11"])
def test_memory_is_bounded(fencing, way):
    assert attack(f"def answer(x): return {way}", fencing) == "raised MemoryError"


def test_memory_that_grows_slowly_is_bounded(fencing):
    grow = "def answer(x):\n    rows = []\n    while True: rows.append(bytearray(10**7))"
    assert attack(grow, fencing) in ("raised MemoryError", "timed out")


def test_memory_that_outlives_a_process_is_not_given(fencing):
    shared = "import ctypes\ndef answer(x): return ctypes.CDLL(None).shmget(0, 10**8, 0o1600)"
    assert answer_of(shared, fencing, 1) == -1


def test_an_endless_file_ends(fencing):
    endless = (
        "def answer(x):\n    with open('big', 'wb') as file:\n        while True: file.write(bytes(10**5))"
    )
    assert attack(endless, fencing) == "raised OSError"


def test_many_files_fill_only_their_own_folder(namespaces):
    many = "def answer(x):\n    for n in range(10**6):\n        with open(str(n), 'wb') as file: file.write(bytes(10**6))"
    assert attack(many, "namespaces") == "raised OSError"


def test_the_network_is_not_there(fencing):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.setblocking(False)
        local.bind("\0prefloop-test" + str(os.getpid()))
        local.listen()
        local.setblocking(False)
        program = f"""
import socket
def answer(x):
    if x == "tcp": socket.create_connection({server.getsockname()}, timeout=1)
    else: socket.socket(socket.AF_UNIX).connect({local.getsockname()!r})
"""
        for kind in ("tcp", "local"):
            with pytest.raises(PermissionError):
                answer_of(program, fencing, kind)
        for one in (server, local):
            with pytest.raises(BlockingIOError):
                one.accept()
    assert run_sample(DOUBLE, HONEST, 3.0, fencing).passed


def test_the_network_is_not_there_in_namespaces_alone(unfiltered):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket\ndef answer(x): socket.create_connection({server.getsockname()}, timeout=1)"
        with pytest.raises(OSError):
            answer_of(program, "namespaces", 1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_flood_of_prints_is_thrown_away(fencing):
    flood = """
import os, sys
def double(x):
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        for _ in range(2000): print("x" * 1000, file=stream)
    os.write(1, b"y" * 10**6); os.write(2, b"y" * 10**6)
    return x + x
"""
    assert run_sample(DOUBLE, flood, 3.0, fencing).passed
    assert attack("def answer(x):\n    while True: print('x' * 1000)", fencing, seconds=0.3) == "timed out"


WRITE = """
import os, time
def write(place, text):
    try: os.write(place, text)
    except OSError: pass
"""


def test_a_flood_of_answers_is_refused(fencing):
    flood = (
        WRITE + "def answer(x):\n    while True:\n        for place in (3, 4, 5): write(place, b'x' * 10**5)"
    )
    assert attack(flood, fencing) == "refused: an answer of more than 1,048,576 bytes"
    assert attack("def answer(x): return 'x' * 2_000_000", fencing).startswith(
        "refused: an answer of more than"
    )


def test_closing_the_protocol_ends_the_session(fencing):
    assert attack("import os\ndef answer(x): os.closerange(0, 64)", fencing) == "ended"
    assert attack("import os, time\nos.closerange(0, 64)\ntime.sleep(60)", fencing) == "ended"


def test_a_program_that_does_not_listen_cannot_hold_us(fencing):
    huge = Problem(
        "made/4", "", "answer", "def check(candidate):\n    for _ in range(9): candidate('x' * 10**6)\n"
    )
    deaf = """
def answer(x):
    for place in range(64): write(place, b'["value", 1]\\n' * 99)
    time.sleep(60)
"""
    assert attack(WRITE + deaf, fencing, seconds=0.5, problem=huge) == "timed out"


LEAVE_BEHIND = """
import ctypes, os, signal, time
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # its end is not that of its parent
def answer(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 64)
            time.sleep(600)
        os._exit(0)
    time.sleep(0.2)
    return 0
"""


def test_no_process_outlives_the_verdict(fencing):
    assert attack(LEAVE_BEHIND, fencing) == "raised PermissionError"


def test_no_process_outlives_its_namespace(unfiltered):
    assert attack(LEAVE_BEHIND, "namespaces") == "wrong answer"
    assert attack(LEAVE_BEHIND.replace("return 0", "os._exit(0)"), "namespaces") == "ended"
    assert (
        attack(LEAVE_BEHIND.replace("return 0", "time.sleep(60)"), "namespaces", seconds=0.5) == "timed out"
    )


KILL = """
import os, resource, signal
def answer(x):
    for number in (os.getppid(), 1, -1, 0, *range(2, 300), {ours}):
        try: os.kill(number, signal.SIGKILL)
        except OSError: pass
        try: resource.prlimit(number, resource.RLIMIT_CPU, (0, 0))
        except (OSError, ValueError): pass
    return 0
"""


def test_no_process_of_ours_can_be_killed(fencing):
    assert attack(KILL.format(ours=os.getpid()), fencing) == "wrong answer"


def test_no_process_of_ours_can_be_killed_from_its_namespace(unfiltered):
    assert attack(KILL.format(ours=os.getpid()), "namespaces") in ("wrong answer", "ended")


def test_the_environment_is_empty(fencing, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THIS_TEST", "1")
    found = answer_of("import os\ndef answer(x): return dict(os.environ)", fencing, 1)
    assert found.keys() <= {"LC_CTYPE"}  # Python's own


@pytest.fixture
def fenced_files(fencing) -> str:
    if fencing == "limits" and ctypes.CDLL(None).syscall(fences.CREATE_RULESET, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock, and files are fenced by namespaces alone")
    return fencing


def test_only_the_files_of_the_interpreter_can_be_read(fenced_files, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("42")
    ours = [f"/proc/{number}/{name}" for number in (1, os.getpid()) for name in ("environ", "mem", "cmdline")]
    places = [
        str(answers),
        str(tmp_path),
        __file__,
        pytest.__file__,
        "/etc",
        "/etc/passwd",
        "/proc",
        "/root",
        *ours,
    ]
    reading = """
import os
def answer(places):
    seen = []
    for one in places:
        try: seen.append([one, os.listdir(one)])
        except OSError: pass
        try: seen.append([one, open(one, "rb").read(1)])
        except OSError: pass
    return seen
"""
    found = answer_of(reading, fenced_files, places)
    # an interpreter may lie in a home; then its own branch is all of it that is there
    assert [one for one in found if one[0] != "/root" or one[1] != [".pyenv"]] == []


def test_no_file_but_its_own_can_be_written(fenced_files, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("kept")
    writing = """
import os, sys
def answer(kept):
    written = []
    open("own", "w").write("x")
    here = os.path.dirname(os.__file__)
    for folder in (os.path.dirname(kept), "/usr/lib", "/lib", here, sys.base_prefix + "/lib", "/var/tmp", "/dev/shm"):
        try: open(folder + "/prefloop-test", "w"); written.append(folder)
        except OSError: pass
    for act in (os.remove, os.rmdir, lambda one: os.truncate(one, 0), lambda one: os.rename(one, one + "2")):
        try: act(kept); written.append(kept)
        except OSError: pass
    return written
"""
    assert answer_of(writing, fenced_files, str(kept)) == []
    assert kept.read_text() == "kept"


def test_deep_recursion_is_no_answer(fencing):
    assert attack("def answer(x): return answer(x)", fencing) == "raised RecursionError"
    crash = "import sys\nsys.setrecursionlimit(10**9)\ndef answer(x): return sorted([x, x], key=answer)"
    assert attack(crash, fencing) in ("ended", "timed out", "raised MemoryError")
    nested = "def answer(x):\n    rows = []\n    for _ in range(10**5): rows = [rows]\n    return rows"
    assert attack(nested, fencing) == "refused: list"
    cycle = "def answer(x):\n    rows = []\n    rows.append(rows)\n    return rows"
    assert attack(cycle, fencing) == "refused: list"


# --- what honest programs get ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 10**6000, -(10**6000), 0.1, -0.0, 5e-324, math.inf, -math.inf, "", "é\ud800\n\0",
        b"\x00\xff", [], (), set(), {}, {1, "a", (2, None)}, {(1, 2): {b"k": [set(), ()]}, None: 1.5, "tuple": {"set": 1}},
        [[[[]]]],
    ],
    ids=lambda value: type(value).__name__,  # a set is printed in another order in each process
)  # fmt: skip
def test_built_in_values_go_there_and_back_unchanged(fencing, value):
    found = answer_of("def answer(x): return x", fencing, value)
    assert (found, type(found), repr(found) if type(value) is float else "") == (
        value, type(value), repr(value) if type(value) is float else "",
    )  # fmt: skip


def test_not_a_number_goes_there_and_back(fencing):
    assert math.isnan(answer_of("def answer(x): return x", fencing, math.nan))


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 500_000, b"[" * 5000 + b"]" * 5000, b'{"set": [[1]]}', b'{"int": "z"}', b'{"a": 1, "b": 2}', b'{"bytes": 5}',
        b'{"dict": [1]}', b'{"object": []}', b"\xff", b"", b"9" * 5000, b"__import__('os')",
        json.dumps({"set": [number * (2**61 - 1) for number in range(20_000)]}).encode(),
    ],
    ids=lambda line: line[:16].decode(errors="replace"),
)  # fmt: skip
def test_lines_that_no_value_has_are_told_at_once(line):
    began = time.monotonic()
    with pytest.raises(ValueError):
        values.loads(line)
    assert time.monotonic() - began < 5


def test_exceptions_come_back_by_their_name(fencing):
    picky = Problem(
        "made/5",
        "",
        "answer",
        "def check(candidate):\n    try:\n        candidate(1)\n    except ValueError:\n        return\n    assert False\n",
    )
    assert run_sample(picky, "def answer(x): raise ValueError", 3.0, fencing).passed
    assert attack("def answer(x): raise KeyError", fencing, problem=picky) == "raised KeyError"
    assert attack("def answer(x): raise AssertionError", fencing) == "raised AssertionError"
    assert attack("class Odd(Exception): pass\ndef answer(x): raise Odd", fencing) == "raised Odd"
    forged = "Forged = type('passed\\n[/]', (Exception,), {})\ndef answer(x): raise Forged"
    assert attack(forged, fencing) == "raised unnamed"


def test_a_program_that_is_none_is_told(fencing):
    assert attack("def answer(x) return", fencing) == "raised SyntaxError"
    assert attack("def answer(x): pass\ndel answer", fencing) == "raised NameError"
    assert attack("\0", fencing) in ("raised SyntaxError", "raised ValueError")


def test_a_session_that_is_over_stays_over(fencing):
    with Session(fencing=fencing) as running:
        running.define("import os\ndef answer(): os._exit(0)", "answer")
        for _ in range(2):
            with pytest.raises(Stopped, match="ended"):
                running.call()
        assert running.failure == "ended"


def test_our_death_ends_what_we_started(namespaces, tmp_path):
    script = (
        "import sys, time\nfrom prefloop.sandbox.session import Session\n"
        "with Session() as running:\n"
        "    running.define('def answer(): pass', 'answer')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    room = str(Path(session.__file__).parents[2])
    started = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": room, "TMPDIR": str(tmp_path)},
    )
    assert started.stdout is not None and started.stdout.readline() == b"ready\n"
    below = psutil.Process(started.pid).children(recursive=True)
    assert len(below) == 2
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []


def test_the_sandbox_needs_the_standard_library_alone():
    imported = set()
    for file in Path(session.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert {one for one in imported if one.split(".")[0] not in sys.stdlib_module_names} == {
        "prefloop.sandbox"
    }
