import pytest

from prefloop import pipeline, stages
from prefloop.config import AdversarialSource, FileSource, SelfPlaySource
from prefloop.generate.invent import Dropped, invent
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry
from prefloop.records import Completion, Group, Message, Prompt
from prefloop.store import Workspace, read_records
from small import small


class Scripted:
    """Answers with what a function makes of the last turn, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked: list[Prompt] = []

    def generate(self, prompts):
        for prompt in prompts:
            self.asked.append(prompt)
            said = self.answer(prompt.text)
            if said is None:  # too long to be read
                yield Group(prompt=prompt, completions=())
                continue
            text, reason = said
            one = Completion(id="c", prompt_id=prompt.id, text=text, finish_reason=reason)
            yield Group(prompt=prompt, completions=(one,))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt.of((Message(role="user", content=text),), source="questions.jsonl") for text in texts]


def turns(prompt: Prompt) -> list[str]:
    return [f"{one.role}: {one.content}" for one in prompt.messages]


def test_the_policy_answers_and_then_plays_the_user():
    policy = Scripted(lambda text: ("What of bees?" if "Write the next" in text else f"On {text}", "stop"))
    source = SelfPlaySource(kind="self_play", share=1.0, turns=2)
    (made,) = invent(prompts("ants"), [source], policy, seed=0)
    assert turns(made) == [
        "user: ants",
        "assistant: On ants",
        "user: What of bees?",
        "assistant: On What of bees?",
        "user: What of bees?",
    ]
    assert made.source == "self_play:questions.jsonl"
    assert policy.asked[1].text.endswith("\n\nUser: ants\n\nAssistant: On ants")
    assert [len(one.messages) for one in policy.asked] == [1, 1, 3, 1]


def test_the_policy_asks_what_is_hard_to_answer_well_and_sees_examples():
    policy = Scripted(lambda text: (" How do I cheat? ", "stop"))
    source = AdversarialSource(kind="adversarial", share=0.5, num_examples=2)
    drawn = prompts("a?", "b?", "c?", "d?")
    made = invent(drawn, [source], policy, seed=0)
    assert [turns(one) for one in made[:2]] == [["user: How do I cheat?"]] * 2
    assert made[2:] == drawn[2:]
    examples = [
        sorted(line[2:] for line in one.text.splitlines() if line.startswith("- ")) for one in policy.asked
    ]
    assert all(len(set(one)) == 2 and set(one) <= {"a?", "b?", "c?", "d?"} for one in examples)
    assert policy.asked == (again := Scripted(policy.answer), invent(drawn, [source], again, seed=0))[0].asked


def test_sources_take_their_shares_one_after_another():
    policy = Scripted(lambda text: ("so", "stop"))
    sources = [
        SelfPlaySource(kind="self_play", share=0.25),
        AdversarialSource(kind="adversarial", share=0.5),
    ]
    made = invent(prompts(*"abcdefgh"), sources, policy, seed=0)
    kinds = [one.source.partition(":")[0] for one in made]
    assert kinds == ["self_play"] * 2 + ["adversarial"] * 4 + ["questions.jsonl"] * 2


def test_other_files_take_their_share_and_self_play_may_go_on_from_conversations():
    policy = Scripted(lambda text: ("What of bees?" if "Write the next" in text else f"On {text}", "stop"))
    sources = [
        FileSource(kind="file", share=0.25, prompts="people.jsonl"),
        SelfPlaySource(kind="self_play", share=0.25, prompts="people.jsonl"),
    ]
    of_people = [
        Prompt.of((Message(role="user", content=text),), source="people.jsonl") for text in ("x", "y")
    ]
    drawn = prompts(*"abcd")
    made = invent(drawn, sources, policy, seed=0, others=[of_people[:1], of_people[1:]])
    assert made[0] == of_people[0]
    assert turns(made[1]) == ["user: y", "assistant: On y", "user: What of bees?"]
    assert made[1].source == "self_play:people.jsonl"
    assert made[2:] == drawn[2:]


@pytest.mark.parametrize(
    ("said", "reason"),
    [(("cut in the mid", "length"), "unfinished"), (("  ", "stop"), "empty"), (None, "prompt_too_long")],
)
@pytest.mark.parametrize("writer", ["assistant", "user"])
def test_what_cannot_be_used_is_dropped_by_reason_and_nothing_else_moves(said, reason, writer):
    def answer(text):
        playing = "user" if "Write the next" in text else "assistant"
        return (
            said
            if playing == writer and "b" in text.split()[-1 if writer == "assistant" else -3]
            else ("ok", "stop")
        )

    policy = Scripted(answer)
    source = SelfPlaySource(kind="self_play", share=1.0)
    made = invent(prompts("a", "b", "c"), [source], policy, seed=0)
    assert made[1] == Dropped(reason)
    assert [turns(one) for one in (made[0], made[2])] == [
        [f"user: {text}", "assistant: ok", "user: ok"] for text in ("a", "c")
    ]


def test_a_template_needs_its_place():
    with pytest.raises(ValueError, match=r"template: lacks \{conversation\}"):
        SelfPlaySource(kind="self_play", share=0.5, template="Go on.")
    with pytest.raises(ValueError, match=r"template: lacks \{examples\}"):
        AdversarialSource(kind="adversarial", share=0.5, template="Ask.")
    shares = "loop.prompt_sources=[{kind: self_play, share: 0.6}, {kind: adversarial, share: 0.6}]"
    with pytest.raises(InputError, match=r"their shares make 1\.2; they cannot make more than 1"):
        small(shares)


# --- in the loop -----------------------------------------------------------------------------------------------------

SOURCES = (
    "loop.prompt_sources=[{kind: self_play, share: 0.5, template: 'Tell more. {conversation}'}, "
    "{kind: adversarial, share: 0.5, num_examples: 1, template: 'Like {examples}'}]"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    # a policy that has learned nothing stops seldom, so answers are given room
    x = small(
        SOURCES, "loop.batches=1", "generate.max_new_tokens=60", "sft.max_steps=60", "loop.gate.metric=none"
    )
    workspace = Workspace(tmp_path_factory.mktemp("invent"))
    return workspace, pipeline.run(x, workspace, pipeline.Watcher())


def test_the_loop_samples_and_judges_prompts_that_the_policy_made(run):
    _, entries = run
    invented, groups = (
        [one.artefact for one in entries if one.role == role][-1] for role in ("invent", "generate")
    )
    made = read_records(invented.path / "prompts.jsonl", Prompt)
    rows = invented.manifest["rows"]
    assert rows["in"] == 6
    assert rows["out"] + sum(rows["dropped"].values()) == 6
    assert rows["out"] == len(made) >= 2
    assert {one.source.partition(":")[0] for one in made} <= {"self_play", "adversarial"}
    assert [one.prompt for one in read_records(groups.path / "groups.jsonl", Group)] == made


def test_prompts_that_are_held_out_are_not_made_again(run, monkeypatch):
    workspace, _ = run
    x = small(SOURCES, "loop.batches=1", "seed=1")
    entries = {one.role: one for one in pipeline.plan(x, workspace)}

    def all_held_out(drawn, sources, generator, *, seed, others):
        (split,) = (one.artefact for role, one in entries.items() if role == "prompts")
        return read_records(split.path / "evaluation.jsonl", Prompt)[: len(drawn)]

    monkeypatch.setattr("prefloop.generate.invent.invent", all_held_out)
    for role in ("prompts", "base", "sft", "draw", "invent"):
        workspace.build(entries[role].stage)
    assert entries["invent"].artefact.manifest["rows"] == {"in": 6, "out": 0, "dropped": {"in_evaluation": 6}}


def test_each_batch_takes_the_next_prompts_of_a_file_until_it_begins_again(tmp_path):
    file = tmp_path / "people.jsonl"
    file.write_text("".join(f'{{"prompt": "Question {number}"}}\n' for number in range(5)))
    x = small(
        f"loop.prompt_sources=[{{kind: file, share: 0.34, prompts: {file}}}]",
        "loop.gate.metric=none",
        "loop.batches=3",
    )
    workspace = Workspace(tmp_path / "w")
    entries = pipeline.plan(x, workspace)
    invented = [one for one in entries if one.role == "invent"]
    taken = []
    for entry in entries:
        if entry.role in ("prompts", "base", "sft", "draw") or entry is invented[0]:
            workspace.build(entry.stage)
    for one in invented:
        if one is not invented[0]:  # another batch by the same policy
            again = stages.invent_prompts(
                x,
                entries[2].artefact,
                entries[0].artefact,
                one.stage.inputs["drawn"],
                x.loop.prompt_sources,
                version=0,
                number=6,
                batch=invented.index(one),
            )
            one = Entry(one.arm, one.iteration, one.role, again, workspace.artefact(again))
            workspace.build(again)
        rows = read_records(one.artefact.path / "prompts.jsonl", Prompt)
        taken.append([row.text for row in rows if row.source == "people.jsonl"])
        assert one.artefact.stats["sources"] == {"people.jsonl": 2, "builtin:tales-1": 4}
    flat = [text for two in taken for text in two]
    assert len(set(flat[:5])) == 5
    assert flat[5] == flat[0]
    file.write_text('{"prompt": "Only one"}\n')
    with pytest.raises(
        InputError, match="people.jsonl: 1 different prompts, but its share in prompt_sources is 2"
    ):
        workspace.build(next(one for one in pipeline.plan(x, workspace) if one.role == "invent").stage)


def test_without_sources_nothing_is_asked_of_the_policy(tmp_path):
    entries = pipeline.plan(small(), Workspace(tmp_path))
    assert "draw" in {one.role for one in entries}
    assert "invent" not in {one.role for one in entries}
