"""Build every sample model and its inputs: ``python sample_models/build.py [--out DIR] [--only NAME]``.

Everything starts from fixed seeds: a rebuild gives the same weights. Takes about a minute.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nets
import numpy as np
import synthetic
import torch
import training
from safetensors.torch import save
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


@dataclass
class Folder:
    """Where files go; remembers which were asked for."""

    path: Path
    written: list[Path] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """The path of a file about to be written."""
        self.written.append(self.path / name)
        return self.written[-1]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fixed random numbers inside; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def save_inputs(path: Path, x: Tensor) -> None:
    """Write samples as float32 npy."""
    np.save(path, x.detach().float().contiguous().numpy())


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a state dict as safetensors."""
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def save_script(path: Path, module: torch.jit.ScriptModule) -> None:
    """Write a TorchScript archive without its debug records.

    Those hold the paths of source files on the machine that built it.
    """
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    reader = torch._C.PyTorchFileReader(buffer)
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        # The writer adds the records about the archive itself.
        if not name.endswith(".debug_pkl") and not name.startswith((".data/", "version", "byteorder")):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def linear(out: Folder) -> str:
    """The map y = w @ x, traced."""
    script = torch.jit.trace(nets.LinearMap().eval(), torch.ones(3, 2))  # type: ignore[no-untyped-call]
    save_script(out.file("linear.pt"), script)
    save_inputs(out.file("linear_x.npy"), torch.tensor([[0.5, -1.0]]))
    return "w = [[1, 2], [3, 4]]"


def near_identity(out: Folder) -> str:
    """An MLP trained to a Jacobian near the identity, and its twin as it was before training."""
    with seeded(1):
        twin = nets.IdentityMLP().eval()
    with seeded(1):
        trained = training.near_identity()
    for name, model in (("near_identity", trained.model), ("untrained", twin)):
        save_weights(out.file(f"{name}.safetensors"), model)
        save_script(out.file(f"{name}.pt"), torch.jit.script(model))
    save_inputs(out.file("near_identity_x.npy"), synthetic.waves(8, seed=3)[0])
    return trained.report


def decoder(out: Folder) -> str:
    """The decoder of a convolutional VAE, and latents of images it was not trained on."""
    with seeded(2):
        trained, latents = training.decoder()
    save_weights(out.file("decoder.safetensors"), trained.model)
    save_inputs(out.file("decoder_z.npy"), latents)
    return trained.report


def residual(out: Folder) -> str:
    """A residual network in a checkpoint laid out as PyTorch Lightning does."""
    with seeded(3):
        trained = training.residual()
    checkpoint = {
        "epoch": 9,
        "global_step": trained.steps,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"module.{name}": tensor for name, tensor in trained.model.state_dict().items()},
        "callbacks": {},
        "optimizer_states": [trained.optimizer_state],
        "lr_schedulers": [],
        "hyper_parameters": {"channels": 12, "blocks": 3, "classes": 4},
    }
    torch.save(checkpoint, out.file("residual.ckpt"))
    save_inputs(out.file("residual_x.npy"), synthetic.patterns(4, seed=3)[0])
    return trained.report


def control_flow(out: Folder) -> str:
    """A scripted network with control flow and state, and inputs for each of its branches."""
    with seeded(4):
        trained = training.control_flow()
    save_script(out.file("control_flow.pt"), torch.jit.script(trained.model))
    for name, bright in (("bright", True), ("dark", False)):
        save_inputs(out.file(f"control_flow_{name}_x.npy"), synthetic.branches(8, seed=3, bright=bright)[0])
    return trained.report


def transformer(out: Folder) -> str:
    """A transformer that removes noise, exported with a batch of any size."""
    with seeded(5):
        trained = training.transformer()
    x = synthetic.signals(4, seed=3)[0]
    batch = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(trained.model, (x,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        # Source lines with the paths of the machine that built it.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, out.file("transformer.pt2"))
    save_inputs(out.file("transformer_x.npy"), x)
    return trained.report


BUILDERS: dict[str, Callable[[Folder], str]] = {
    "linear": linear,
    "near_identity": near_identity,
    "decoder": decoder,
    "residual": residual,
    "control_flow": control_flow,
    "transformer": transformer,
}


def main() -> None:
    """Build what the command line asks for and say what was written."""
    parser = argparse.ArgumentParser(description="Build the sample models and their inputs.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this one)")
    parser.add_argument("--only", choices=list(BUILDERS), help="build one model")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # Sums over several threads would depend on how many there are.
    torch.set_num_threads(1)
    for name in [options.only] if options.only else BUILDERS:
        folder, start = Folder(options.out), time.monotonic()
        report = BUILDERS[name](folder)
        print(f"{name}: {report} ({time.monotonic() - start:.0f} s)")
        for path in folder.written:
            print(f"  wrote {path} ({path.stat().st_size / 1024:.1f} KiB)", flush=True)


if __name__ == "__main__":
    main()
