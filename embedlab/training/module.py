"""Connects backbone, method, pooling, loss and schedule to a training step. The logic is in these parts.

Texts enter as a ``PairBatch`` of ``embedlab.data``. Embeddings leave from an ``Encoder``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from embedlab.data.collate import PairBatch
from embedlab.data.evaluation.metrics import EmbeddingTable
from embedlab.data.evaluation.tasks import EvaluationTask
from embedlab.errors import ConfigError, DataError, DivergenceError
from embedlab.gradcache.chunking import Chunk
from embedlab.gradcache.engine import GradCache, Recompute
from embedlab.losses import ContrastiveLoss, LossGradient, SymmetricInfoNCE
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.model.backbone import BackboneConfig, fingerprint, is_finite, load_backbone
from embedlab.model.encoder import Encoder
from embedlab.model.pooling import PoolingMode
from embedlab.training.meter import FlopMeter
from embedlab.training.optimizer import OptimizerConfig, options_of, require_sound_state, take_options
from embedlab.training.schedule import Schedule, WarmupCosine
from embedlab.training.whole_data import refuse_parts_of_data, refuse_rare_evaluation, sees_a_part

_FEW_STEPS = 10  # with fewer steps, a run hardly has a schedule
_NOT_IN_FLOAT16 = (
    "AdamW's eps of 1e-8 is 0 in float16, so weights become NaN at the first step. Use model.backbone.dtype float32 "
    "with trainer.precision bf16-mixed, or bfloat16 with bf16-true."
)
_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


class EmbeddingModule(LightningModule):
    """A text-embedding model in training.

    Args:
        backbone: Pre-trained decoder to start from, and options for loading it.
        method: Fine-tuning method, which decides what of the backbone is trained, and how.
        loss: Contrastive loss. The default is SymmetricInfoNCE.
        pooling: Pooling of the hidden states of a text's tokens into one vector.
        optimizer: Options of AdamW, such as ``learning_rate`` and ``weight_decay``. Options that are left out have
            default values.
        schedule: Schedule of the learning rate over the run. The default is WarmupCosine.
        recompute: Policy for the autograd graphs of chunks: keep every graph (``never``), keep no graph and encode
            each chunk twice (``always``), or keep graphs while memory lasts (``auto``).
        seed: Seed of dropout and of newly initialized weights.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        method: FineTuningMethod,
        loss: ContrastiveLoss | None = None,
        pooling: PoolingMode = "mean",
        optimizer: OptimizerConfig | None = None,
        schedule: Schedule | None = None,
        recompute: Recompute = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step back-propagates once per chunk
        self.strict_loading = False  # a checkpoint holds only the weights that training changes
        self.backbone_config = backbone
        self.backbone_name = backbone.path  # for the record; the command line names a rung of the ladder here
        self.method = method
        self.loss = loss or SymmetricInfoNCE()
        self.pooling: PoolingMode = pooling
        self.optimizer_config = optimizer or OptimizerConfig()
        self.schedule = schedule or WarmupCosine()
        self.recompute: Recompute = recompute
        self.seed = seed
        self.encoder: Encoder | None = None
        self.backbone_fingerprint: str | None = None  # of the untrained weights; None if not known
        self.is_trained = False  # whether a step was taken or a checkpoint loaded
        self.learning_rate = 0.0
        self.flop_meter = FlopMeter()
        self.run_config: dict[str, Any] = {}  # how to build this module again; the command line fills it in
        self.evaluation: dict[str, float] = {}  # the newest results of validation or test
        self.evaluated_step: int | None = None  # number of optimizer steps taken when they were measured
        self.accepted_changes: list[str] = []  # differences from the first run of the family
        self.is_another_run = False  # whether accepted changes make this run differ from the checkpoint's run
        self.record_is_owed: Callable[[], bool] | None = None  # whether the run's record is missing; set by a callback
        self.is_shown_in_table = False  # whether a callback prints the evaluation in a table at the end
        self._split: Literal["validation", "test"] = "validation"
        self.tasks: Sequence[EvaluationTask] = ()
        self._tables: list[EmbeddingTable] = []
        self._gradient: GradCache | None = None
        self._has_stepped = False

    # Building

    def configure_model(self) -> None:
        """Load the backbone and let the method prepare it, once."""
        if self.encoder is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # makes new weights equal on every rank, and after a resume
            extra = self.method.backbone_kwargs()
            backbone = load_backbone(self.backbone_config, extra)
            if not extra:  # weights in a form of the method's choice, for example quantized, differ between devices
                self.backbone_fingerprint = fingerprint(backbone)
            rate = self.optimizer_config.learning_rate
            self.learning_rate = self.method.default_learning_rate(backbone) if rate is None else rate
            self._backbone_parameters = list(backbone.parameters())
            self.encoder = Encoder(prepare_backbone(self.method, backbone), self.pooling)

    def setup(self, stage: str) -> None:
        """Take the evaluation tasks of this stage from the data module, and check the trainer's options.

        Raises:
            ConfigError: If an evaluation has no tasks, if the trainer's options leave out data, or if its precision or
                strategy cannot train.
        """
        refuse_parts_of_data(self.trainer)
        if stage in ("fit", "validate", "test"):
            self._split = "test" if stage == "test" else "validation"
            self.tasks = self.trainer.datamodule.evaluation_tasks(self._split)  # type: ignore[attr-defined]
        if stage == "fit":
            self._gradient = None
            self._has_stepped = False
            self._refuse_what_cannot_train()
            refuse_rare_evaluation(self.trainer)
        if stage in ("validate", "test") and not self.tasks:
            raise ConfigError(
                f"There are no {self._split} texts to evaluate on. Set data.{self._split}_fraction to hold out pairs, "
                "or name evaluation sets in data.retrieval or data.sts."
            )

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW over the method's parameter groups, and over the temperature if it is learned."""
        options = self.optimizer_config
        groups = self.method.parameter_groups(self._encoder.backbone)
        if options.decay_vectors:
            for group in groups:
                if all(parameter.ndim < 2 for parameter in group["params"]):
                    group["weight_decay"] = options.weight_decay
        loss_parameters = list(self.loss.parameters())
        if loss_parameters:
            groups.append({"params": loss_parameters, "weight_decay": 0.0})
        kind: type[Optimizer] = torch.optim.AdamW
        if options.states == "8bit":
            from bitsandbytes.optim.adamw import AdamW8bit  # a slow import that few runs need

            kind = AdamW8bit
        optimizer = kind(
            groups,
            lr=self.learning_rate,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )  # type: ignore[call-arg]
        self._optimizer_options = options_of(optimizer)
        return optimizer

    @property
    def _encoder(self) -> Encoder:
        assert self.encoder is not None, "configure_model must run first"
        return self.encoder

    # Training

    def _refuse_what_cannot_train(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision '16-mixed' scales the loss, which a chunked gradient does not support. "
                "Use 'bf16-mixed' or '32-true'."
            )
        if self.trainer.precision == "16-true":
            raise ConfigError(f"trainer.precision '16-true' would train weights in float16. {_NOT_IN_FLOAT16}")
        if isinstance(self.trainer.strategy, _SHARDED):
            raise ConfigError(
                f"trainer.strategy {type(self.trainer.strategy).__name__} shards the model, so ranks with different "
                "numbers of chunks would wait for each other forever. Use 'ddp', with LoRA if memory is short."
            )

    def on_fit_start(self) -> None:
        """Prepare the training."""
        self.prepare_training()

    def prepare_training(self) -> None:
        """Set training mode, find the blocks that a second forward pass can skip, and observe the cost of a step, once.

        Lightning starts callbacks before the module. A callback that needs the cost of a step when it starts calls this
        method.

        Raises:
            ConfigError: If a weight would be trained in float16.
            PluginError: If there is a budget and the cost of a layer cannot be observed.
        """
        if self._gradient is not None:
            return
        half = next((n for n, p in self.named_parameters() if p.requires_grad and p.dtype == torch.float16), None)
        if half is not None:
            raise ConfigError(
                f"{type(self.method).__name__} would train {half} in float16 (model.backbone.dtype). {_NOT_IN_FLOAT16}"
            )
        self.train()
        counts = [sum(p.numel() for p in ps) for ps in (self._encoder.parameters(), self._trained())]
        if self.trainer.is_global_zero:
            print(f"{type(self.method).__name__} trains {counts[1]:,} of {counts[0]:,} parameters.")
        with self.trainer.precision_plugin.forward_context():
            frozen_blocks = self._encoder.frozen_blocks()
            self.flop_meter.observe(
                self._encoder,
                self._backbone_parameters,
                frozen_blocks,
                max_length=self.trainer.datamodule.max_length,  # type: ignore[attr-defined]
                recompute=self.recompute,
            )
        self._gradient = GradCache(
            self._encoder,
            list(self._encoder.parameters()),
            recompute=self.recompute,
            frozen_blocks=frozen_blocks,
        )

    def on_train_start(self) -> None:
        """Warn about a run that is too short to learn, and end a run that is done already.

        Lightning would take a further step if a checkpoint of the last step was written between epochs.

        Raises:
            DataError: If the checkpoint holds an optimizer state that training does not write.
        """
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert not isinstance(optimizer, list)
        require_sound_state(optimizer)
        take_options(optimizer, self._optimizer_options)
        self.trainer.should_stop |= self.is_done()
        steps = self.trainer.estimated_stepping_batches
        if self.flop_meter.account.budget is None and steps < _FEW_STEPS and self.schedule.factor(1.0) < 1:
            rank_zero_warn(
                f"This run has {steps} step{'s' * (steps != 1)}, the last at {self.schedule.factor(1.0):g} times the "
                "peak learning rate, because the schedule ends there. The model hardly learns. Lower data.batch_size, "
                "give more pairs, or raise trainer.max_epochs."
            )

    @property
    def share_done(self) -> float:
        """The share of the run that is done: of the FLOP budget if there is a budget, else of the steps.

        Raises:
            ConfigError: If the run has no end.
        """
        return self._share(flops=0, steps=0)

    def is_done(self) -> bool:
        """Return whether the budget is spent or, without a budget, the planned steps are taken."""
        if self.flop_meter.account.budget is not None:
            return self.flop_meter.account.is_spent
        return self.trainer.global_step >= self.trainer.estimated_stepping_batches

    def is_past_plan(self) -> bool:
        """Return whether more steps are taken than planned, because the checkpoint comes from a longer run."""
        has_budget = self.flop_meter.account.budget is not None
        return not has_budget and self.trainer.global_step > self.trainer.estimated_stepping_batches

    def _share(self, *, flops: int, steps: int) -> float:
        """Return the share of the run that is done after further FLOPs (with a budget) or steps (without)."""
        if self.flop_meter.account.budget is not None:
            return self.flop_meter.account.share_after(flops)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ConfigError(
                "The run has no end, so its learning rate has no schedule. Set trainer.max_epochs or "
                "trainer.max_steps, or give a --budget."
            )
        return (self.trainer.global_step + steps) / total

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Take one optimizer step with the exact gradient of the whole batch over all ranks."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self._seed_step()
        assert self._gradient is not None, "on_fit_start has run"
        encoded = self._gradient.encode(batch.chunks)
        recomputed = encoded.num_recomputed_tokens
        executed = self.flop_meter.executed(encoded)
        result = self.loss.gradient(encoded.embeddings_UD, batch.rows, group=self._group())
        self._require_finite(result.loss, "loss", batch)
        self._backward(encoded, result, len(batch.chunks))
        norm = torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]],
            float("inf") if self.optimizer_config.clip is None else self.optimizer_config.clip,
        )
        self._require_finite(norm, "gradient norm", batch)
        # The share includes the current step, so that the last step has the schedule's final learning rate.
        factor = self.schedule.factor(self._share(flops=self.flop_meter.algorithmic(batch), steps=1))
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_scale", 1.0) * factor
        optimizer.step()
        optimizer.zero_grad()
        if not self._has_stepped:
            self._has_stepped = self.is_trained = True
            self._require_finite_weights(f"Step {self.trainer.global_step - 1}, the first of this process, made")
        self.flop_meter.count(batch, executed + result.flops, self.trainer)
        self.trainer.should_stop |= self.is_done()  # also asks for a last validation
        self.log_dict(
            {
                "train/gradient_norm": norm,
                "train/negatives": float(result.num_candidates),
                "train/temperature": torch.exp(-self.loss.log_scale.detach()),
                "train/recomputed_tokens": float(recomputed),
            }
        )
        self.log("train/loss", result.loss, prog_bar=True)
        self.log("train/learning_rate", self.learning_rate * factor, prog_bar=True)

    def _backward(self, encoded: Any, result: LossGradient, num_chunks: int) -> None:
        # The chunks of each rank give a part of the global gradient, which is the sum over ranks. The strategy
        # averages over ranks, hence the factor. The gradient of the temperature is complete on every rank.
        assert self._gradient is not None
        gradient_UD = result.embeddings_UD * self.trainer.world_size
        for number, surrogate in enumerate(self._gradient.surrogates(encoded, gradient_UD), start=1):
            last = number == num_chunks
            if last and self.loss.log_scale.requires_grad:
                surrogate = surrogate + self.loss.log_scale * result.log_scale
            with nullcontext() if last else self._without_synchronization():
                self.manual_backward(surrogate)

    def _without_synchronization(self) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _group(self) -> torch.distributed.ProcessGroup | None:
        return torch.distributed.group.WORLD if self.trainer.world_size > 1 else None

    def _seed_step(self) -> None:
        """Seed the random numbers with (seed, step, rank), so that a resumed run has no random state to restore."""
        words = [self.seed, self.trainer.global_step, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _require_finite(self, value: Tensor, name: str, batch: PairBatch) -> None:
        if bool(torch.isfinite(value)):
            return
        step = self.trainer.global_step
        self._require_finite_weights(f"The {name} is {value.item()} at step {step}, because the step before made")
        raise DivergenceError(
            f"The {name} is {value.item()} at step {step} (epoch {self.trainer.current_epoch}, "
            f"source '{batch.source}', pairs {list(batch.pair_rows[:8])} and {max(0, len(batch.pair_rows) - 8)} more). "
            "This step has not changed the weights, and an earlier checkpoint, if there is one, is kept. Lower "
            "optimizer.learning_rate, lengthen the warm-up, or look at these pairs."
        )

    def _require_finite_weights(self, who_made: str) -> None:
        """Raise an error if a trained weight is NaN or infinite.

        Args:
            who_made: Subject and verb of the message, for example "The steps before step 3 made".

        Raises:
            DivergenceError: If a trained weight is NaN or infinite.
        """
        broken = next((name for name, weight in self._trained_tensors().items() if not is_finite(weight)), None)
        if broken is None:
            return
        raise DivergenceError(
            f"{who_made} the weight {broken} ({self.get_parameter(broken).dtype}) NaN or infinite, although loss "
            "and gradient were finite. These weights are not saved; an earlier checkpoint, if there is one, is kept. "
            "Lower optimizer.learning_rate, raise optimizer.eps, or keep the weights in float32 (model.backbone.dtype)."
        )

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Create an empty table of embeddings per task."""
        self._tables = [EmbeddingTable(task.num_rows).to(self.device) for task in self.tasks]

    def validation_step(self, chunk: Chunk, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encode one chunk of one task's texts."""
        self._tables[dataloader_idx].update(chunk.rows_B, self._encoder(chunk))

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of every task over the embeddings of all ranks."""
        tables, self._tables = self._tables, []
        if sees_a_part(self.trainer):  # a part shows that the evaluation runs, but is too little for a metric
            return
        self.evaluation, self.evaluated_step = {}, self.trainer.global_step
        for task, table in zip(self.tasks, tables, strict=True):
            for name, value in task.metrics(table.compute()).items():
                self.evaluation[f"{self._split}/{task.name}/{name}"] = value
        if self.trainer.sanity_checking:  # the evaluation before training, of which Lightning logs nothing
            for logger in self.trainer.loggers:
                logger.log_metrics(self.evaluation, step=0)
        else:
            self.log_dict(self.evaluation, rank_zero_only=True)

    def on_test_epoch_start(self) -> None:
        """Create an empty table of embeddings per test task."""
        self.on_validation_epoch_start()

    def test_step(self, chunk: Chunk, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Encode one chunk of one test task's texts."""
        self.validation_step(chunk, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of every test task over the embeddings of all ranks."""
        self.on_validation_epoch_end()

    def predict_step(self, chunk: Chunk, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Return the rows and the unit-norm embeddings of one chunk's texts."""
        return chunk.rows_B, self._encoder(chunk)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the weights that training changes, the configuration, the evaluation and the counts of FLOPs.

        The other weights are left out, because they come from the backbone.

        Raises:
            DivergenceError: If a trained weight is NaN or infinite.
        """
        self._require_finite_weights(f"The steps before step {self.trainer.global_step} made")
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in self._trained_tensors()}
        checkpoint["run_config"] = self.run_config
        checkpoint["backbone_fingerprint"] = self.backbone_fingerprint
        checkpoint["evaluation"] = self.evaluation
        checkpoint["evaluated_step"] = self.evaluated_step
        checkpoint["flops"] = self.flop_meter.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint, and restore its counts of FLOPs and its evaluation.

        Raises:
            ConfigError: If the checkpoint's method or backbone differs: other names or shapes of trained parameters, or
                other weights of the backbone before training.
            DataError: If the checkpoint holds values that training does not write, for example weights that are NaN.
        """
        state = checkpoint.get("state_dict")
        if not isinstance(state, Mapping):
            raise DataError(
                f"The checkpoint's state_dict is a {type(state).__name__}. Expected a mapping from names to tensors."
            )
        expected = {name: weight.shape for name, weight in self._trained_tensors().items()}
        received = {str(name): getattr(value, "shape", None) for name, value in state.items()}
        if expected != received:
            differing = sorted(name for name in {*expected, *received} if expected.get(name) != received.get(name))[:3]
            raise ConfigError(
                f"The checkpoint holds {len(received)} trained tensors, and this configuration trains {len(expected)}. "
                f"They differ, for example, in {', '.join(differing):.300}. Use the configuration that the checkpoint "
                "was trained with: config.yaml in its run folder."
            )
        for name, value in state.items():
            if not (isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta):
                raise DataError(
                    f"The checkpoint holds a {type(value).__name__} for {name}. Expected a dense tensor with its data."
                )
            if not value.is_floating_point() or not is_finite(value):
                raise DataError(
                    f"The checkpoint's {name} ({value.dtype}) holds values that are not finite floating-point numbers."
                )
        other = checkpoint.get("backbone_fingerprint")  # older checkpoints have no fingerprint
        if None not in (other, self.backbone_fingerprint) and other != self.backbone_fingerprint:
            raise ConfigError(
                f"The checkpoint was trained on another backbone than '{self.backbone_config.path}': the weights, the "
                "dtype or the seed of random weights differ. Use the backbone that the checkpoint was trained on; its "
                "path is in config.yaml in the run's folder."
            )
        flops = checkpoint.get("flops")
        if flops is not None and not (
            isinstance(flops, Mapping) and all(type(n) is int and n >= 0 for n in flops.values())
        ):
            raise DataError(
                f"The checkpoint's counts of FLOPs are {flops!r:.100}. Expected a mapping from names to whole numbers."
            )
        self.flop_meter.load_state_dict(flops)
        evaluation = checkpoint.get("evaluation") or {}
        if not (isinstance(evaluation, Mapping) and all(isinstance(one, int | float) for one in evaluation.values())):
            raise DataError(
                f"The checkpoint's evaluation is {evaluation!r:.100}. Expected a mapping from names to numbers."
            )
        self.evaluation = dict(evaluation)
        step = checkpoint.get("evaluated_step")
        if step is not None and type(step) is not int:
            raise DataError(f"The checkpoint's evaluated_step is {step!r:.100}. Expected a number of steps or None.")
        self.evaluated_step = step
        self.is_trained = True

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._encoder.parameters() if parameter.requires_grad]

    def _trained_tensors(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
