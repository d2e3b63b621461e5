"""What the label store refuses. Each kind has one answer in HTTP; the message is for the person who asked."""

from prefloop.interfaces import PrefloopError


class LabelError(PrefloopError):
    """A request that the store refuses; nothing of it was stored."""

    status = 400


class NotFound(LabelError):
    """There is no such thing, or it is not this person's: the two are not told apart."""

    status = 404


class Forbidden(LabelError):
    """This person may not do that."""

    status = 403


class ConsentNeeded(Forbidden):
    """There is something to agree to before the first task."""

    def __init__(self, project_id: str) -> None:
        super().__init__("read what this project asks you to agree to, and agree, before the first task")
        self.project_id = project_id


class Conflict(LabelError):
    """The same was said before, and otherwise."""

    status = 409


class Invalid(LabelError):
    """What was said does not fit the task."""

    status = 422


class Frozen(LabelError):
    """The round has been frozen: what was said in it is being trained on and stays as it is."""

    status = 423
