"""The settings of `LambdaGRPOTrainer`: TRL's `GRPOConfig` plus ours."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit import advantage_varies, get_credit, takes_plan, try_credit
from lambda_grpo.engines.trl.packing import MODES
from lambda_grpo.engines.trl.sampling import SAMPLERS
from lambda_grpo.engines.trl.vllm_forks import check_generation_kwargs
from lambda_grpo.errors import InputError, expect, unknown_name
from lambda_grpo.fork_chooser import ForkChooser

LOSS_TYPES = ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
"""What TRL's loss can compute. TRL itself has no such list, and refuses another name at the first step."""


@dataclass
class LambdaGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` plus the credit. Every other field keeps TRL's meaning and default.

    Attributes:
        credit: name of the credit, a key of `lambda_grpo.credit.CREDITS`, or a function of your own:
            `my_module:my_credit`, `path/to/my_credit.py:my_credit`.
        credit_kwargs: the credit's own parameters, checked against its signature.
        tree_packing: run the model over the unique tokens of each micro-batch: `auto` where that should be
            faster, by what is timed on the first micro-batch; `on`, or `off`.
        tokens_per_pass: the most tokens of a packed row, 0 for no limit. A longer one is cut into several,
            which run one after the other; a single completion may be longer.
        sampler: `tree` computes each prompt once for all its completions, and lets ended ones go; `generate`
            is TRL's own way; `auto` is `tree` where that can be, and `generate` where it cannot. On devices
            other than a CPU `auto` times both in the first six turns, and takes the faster one.
        branch_depths, branch_factors: where the completions of a group fork, in tokens after the prompt, and
            into how many blocks (`BranchPlan`); None: they are independent. `auto` chooses depth and factor
            of each batch by what earlier ones showed (`ForkChooser`). Validation never forks.
        save_rollouts: write every generation batch to `output_dir/rollouts/*.parquet`.
        reward_timeout: seconds that one call of a reward function may take, 0 for no limit.
        max_skipped_steps: so many steps in a row whose gradients are not finite end training.
    """

    credit: str = field(
        default="lambda_grpo", metadata={"help": "Name of the credit, e.g. grpo; or my_module:my_credit."}
    )
    credit_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The credit's own parameters, as JSON."}
    )
    tree_packing: str = field(
        default="auto", metadata={"help": "Run each shared token only once: auto (where it pays), on or off."}
    )
    tokens_per_pass: int = field(
        default=0, metadata={"help": "Most tokens of a packed row, to bound memory; 0 for no limit."}
    )
    sampler: str = field(
        default="auto",
        metadata={
            "help": "Run each prompt once for all completions: auto (where it can be, and on a GPU if that "
            "is faster), tree or generate."
        },
    )
    branch_depths: list[int] | str | None = field(
        default=None,
        metadata={
            "help": "Tokens after the prompt at which completions fork, such as 8 16; auto: chosen by what "
            "earlier batches showed. Nothing forks where it is not set.",
            "nargs": "+",  # on the command line they come as texts
        },
    )
    branch_factors: list[int] | None = field(
        default=None, metadata={"help": "For each depth, the number of blocks that a block forks into."}
    )
    save_rollouts: bool = field(
        default=False, metadata={"help": "Write every generation batch to output_dir/rollouts."}
    )

    reward_timeout: float = field(
        default=600.0, metadata={"help": "Seconds one call of a reward function may take; 0 for no limit."}
    )
    max_skipped_steps: int = field(
        default=10, metadata={"help": "Steps in a row with gradients that are not finite that end training."}
    )

    # Tells transformers which fields it may get as a JSON string.
    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit_kwargs"]

    def __post_init__(self) -> None:
        self._check_numbers()
        self._derive()
        if self.loss_type not in LOSS_TYPES:
            raise unknown_name("loss_type", str(self.loss_type), LOSS_TYPES)
        expect(self.learning_rate >= 0, "learning_rate", self.learning_rate, "0 or more")
        self.branch_depths = _as_numbers(self.branch_depths)
        self.check_credit()
        if self.tree_packing not in MODES:
            raise unknown_name("tree_packing", str(self.tree_packing), MODES)
        if self.tokens_per_pass < 0:
            raise InputError(f"tokens_per_pass: expected 0 or more, got {self.tokens_per_pass}")
        if self.sampler not in SAMPLERS:
            raise unknown_name("sampler", str(self.sampler), SAMPLERS)
        if self.sampler == "tree" and (self.use_vllm or self.use_transformers_continuous_batching):
            raise InputError(
                "sampler: got 'tree', but vLLM or continuous batching is to generate. Set sampler='auto'"
            )

        self._check_branches()

    def _check_numbers(self) -> None:
        """Raise InputError for a number that is a text: TRL takes it, and fails once training begins."""
        ours = ("tokens_per_pass", "reward_timeout", "max_skipped_steps")
        for name in ("learning_rate", "num_generations", *ours):
            value = getattr(self, name)
            wanted = "a number. In YAML write 1.0e-5, because it reads 1e-5 as text"
            expect(not isinstance(value, str), name, repr(value), wanted)

    def _derive(self) -> None:
        """TRL's own checks and derived fields; if groups do not fill the batch, say which sizes would."""
        group = self.num_generations
        expect(
            group >= 2, "num_generations", group, "at least 2: an advantage compares a group's completions"
        )
        set_by = "per_device_train_batch_size"
        if self.generation_batch_size is not None:
            set_by = "generation_batch_size"
        try:
            super().__post_init__()
        except ValueError as error:
            batch = self.generation_batch_size
            if batch is None or batch % group == 0:
                raise
            raise InputError(
                f"num_generations: got {group}, expected a divisor of generation_batch_size, which is {batch}"
                f"{_nearest_divisors(batch, group)}; or set {set_by} to a multiple of {group}"
            ) from error

    @property
    def forks(self) -> bool:
        """Whether completions may fork in training."""
        return self.branch_depths is not None or self.branch_factors is not None

    @property
    def branch_plan(self) -> BranchPlan | None:
        """Where the completions of a group fork in training; None: nowhere, or it is chosen batch by batch.

        Raises:
            InputError: depths or factors that are no plan.
        """
        if not self.forks or self.branch_depths == "auto":
            return None
        depths: Any = self.branch_depths
        factors: Any = self.branch_factors
        if factors is None:
            raise InputError(f"branch_depths {depths} need branch_factors, one for each depth, such as 2")
        if depths is None:
            raise InputError(f"branch_factors {factors} need branch_depths, one for each factor, such as 8")
        return BranchPlan(depths, factors)

    def fork_chooser(self) -> ForkChooser | None:
        """What chooses where to fork, without records; None if that is fixed.

        Raises:
            InputError: factors are given too; nothing can be chosen from.
        """
        if self.branch_depths != "auto":
            return None
        if self.branch_factors is not None:
            raise InputError(
                f"branch_factors: got {self.branch_factors}, but branch_depths is 'auto', which chooses the "
                "factor too: leave branch_factors away, or give the depths"
            )
        longest: Any = self.max_completion_length
        return ForkChooser(self.num_generations, longest)

    def _check_branches(self) -> None:
        """Raise InputError where the plan and the other settings do not fit together."""
        if not self.forks:
            return
        if self.max_completion_length is None:
            raise InputError(
                "branch_depths: max_completion_length is not set, and forks lie before it: set it"
            )
        self.fork_chooser()
        if plan := self.branch_plan:
            plan.sizes(self.num_generations)
            plan.check_length(self.max_completion_length)
        if self.use_transformers_continuous_batching:
            raise InputError(
                "branch_depths: continuous batching cannot fork completions. Leave branch_depths away, or "
                "let the tree sampler or vLLM generate"
            )
        if self.use_vllm:
            check_generation_kwargs(self.generation_kwargs, self.vllm_structured_outputs_regex)
        if self.sampler == "generate":
            raise InputError("branch_depths: sampler 'generate' cannot fork. Set sampler='auto' or 'tree'")
        rows = self.generation_batch_size // self.world_size
        if rows % self.num_generations:
            raise InputError(
                f"branch_depths: each of {self.world_size} ranks generates {rows} rows, which are no whole "
                f"groups of {self.num_generations}, and a group forks on one rank: make "
                "per_device_train_batch_size × steps_per_generation a multiple of num_generations"
            )

    def check_credit(self) -> None:
        """Raise InputError where the credit, its parameters and the ratios do not fit together."""
        if isinstance(self.credit_kwargs, str):
            raise InputError(f"credit_kwargs: expected a JSON object, got {self.credit_kwargs!r}")
        tried = try_credit(self.credit, self.credit_kwargs)
        if takes_plan(get_credit(self.credit)) and not self.forks:
            raise InputError(
                f"credit {self.credit!r} is for completions that fork: set branch_depths and branch_factors"
            )
        if advantage_varies(tried) and (mechanism := self._one_ratio_per_completion()):
            raise InputError(
                f"credit {self.credit!r} gives each token of a completion an advantage of its own, but "
                f"{mechanism} needs one advantage per completion: choose credit 'lambda_grpo' or 'grpo', "
                "or set importance_sampling_level='token', another loss_type than 'vespo', and no "
                "off_policy_mask_threshold"
            )

    def _one_ratio_per_completion(self) -> str:
        """The setting by which TRL judges a completion as a whole; empty if there is none."""
        if self.importance_sampling_level != "token":
            return f"importance_sampling_level={self.importance_sampling_level!r}"
        if self.loss_type == "vespo":
            return "loss_type='vespo'"
        if self.off_policy_mask_threshold is not None:
            return f"off_policy_mask_threshold={self.off_policy_mask_threshold}"
        return ""


def _nearest_divisors(batch: int, group: int) -> str:
    """The next smaller and the next larger size of a group that fills a batch, for a message.

    >>> _nearest_divisors(256, 5), _nearest_divisors(8, 16), _nearest_divisors(7, 2), _nearest_divisors(1, 8)
    (', such as 4 or 8', ', such as 8', ', such as 7', '')
    """
    below = [size for size in range(2, group) if batch % size == 0][-1:]
    above = [size for size in range(group + 1, batch + 1) if batch % size == 0][:1]
    near = " or ".join(map(str, below + above))
    return f", such as {near}" if near else ""


def _as_numbers(depths: Any) -> Any:
    """`branch_depths` as numbers, or `auto`; the command line gives a list of texts."""
    if depths == ["auto"]:
        return "auto"
    if isinstance(depths, list) and any(isinstance(depth, str) for depth in depths):
        depths = [int(d) if isinstance(d, str) and d.isdecimal() else d for d in depths]
    texts = depths if isinstance(depths, list) else [depths]
    if depths != "auto" and any(isinstance(depth, str) for depth in texts):
        raise InputError(f"branch_depths: expected whole numbers, such as 8 16, or auto, got {depths!r}")
    return depths
