"""What the forms of tasks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from cdgen.evaluation.metrics import Metric

if TYPE_CHECKING:
    from cdgen.evaluation.scoring.evaluator import Evaluator
    from cdgen.evaluation.tasks import Task

Template: TypeAlias = "str | list[str]"  # the name of a field, a Jinja template, or several that give a list
REQUIRED = ""  # default of a template field that every task of the form must state


class Item(NamedTuple):
    """One item of a task, such as a pair of sentences or a question. The fingerprint of a task covers all attributes.

    Attributes:
        id: id of the item, unique in the task.
        group: phenomenon, domain or number of operations; "" if the task has no groups.
        content: what is scored; it can be written as JSON.
    """

    id: str
    group: str
    content: Any


class Form(ABC):
    """A kind of task: how its items are read or made, and how they are scored.

    Attributes:
        name: the form's name in task files and on the command line.
        fields: default template of each field that the form reads from a record; :data:`REQUIRED` if there is no
            default; None if the field is optional.
        options: default of each option that a task file may set.
        path: "required", or "optional" if the form can make items without a path.
        metrics: statistics of the scores; the first one is the task's result, by which models are compared.
    """

    name: ClassVar[str]
    fields: ClassVar[Mapping[str, "Template | None"]] = {}
    options: ClassVar[Mapping[str, Any]] = {}
    path: ClassVar[Literal["required", "optional"]] = "required"
    metrics: ClassVar[tuple[Metric, ...]]

    def metrics_of(self, task: "Task") -> tuple[Metric, ...]:
        """Return the metrics of a task. A form whose columns depend on the task overrides this method."""
        return self.metrics

    @abstractmethod
    def items(self, task: "Task") -> list[Item]:
        """Read or make the items of a task, and check them.

        Raises:
            InputError: a record cannot be used; the message names the file, the place, the field and the remedy.
        """

    @abstractmethod
    def score(self, items: Sequence[Item], evaluator: "Evaluator") -> dict[str, list[Any]]:
        """Score items.

        Returns:
            The columns of the score table by name, one value per item; at least those that the metrics use.
        Raises:
            InputError: the model cannot score an item, or gives NaN.
        """
