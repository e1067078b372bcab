"""The step of the PyTorch world that `tools.benchmark step` measures beside ours, in a process of its own.

  PYTHON -P tools/step_peers.py versions
  PYTHON -P tools/step_peers.py train TRAINING.json

Runs in any environment that has torch and transformers, so it imports nothing of this project. The model is Hugging
Face's ViTMAEForPreTraining as its users run it: eager, scaled_dot_product_attention, AdamW with fused=True, bfloat16 by
autocast. Images are normalised once, before all steps, and lie in memory.
"""

import contextlib
import importlib
import json
import math
import resource
import sys
import time

PACKAGES = ("torch", "transformers")


def build_model(recipe):
    """The recipe's masked autoencoder."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = recipe["image_size"]
    config = ViTMAEConfig(
        image_size=size if isinstance(size, int) else size[0],
        patch_size=recipe["patch_size"],
        num_channels=recipe["channels"],
        hidden_size=recipe["embed_dim"],
        num_hidden_layers=recipe["depth"],
        num_attention_heads=recipe["num_heads"],
        intermediate_size=4 * recipe["embed_dim"],
        decoder_hidden_size=recipe["decoder_embed_dim"],
        decoder_num_hidden_layers=recipe["decoder_depth"],
        decoder_num_attention_heads=recipe["decoder_num_heads"],
        decoder_intermediate_size=4 * recipe["decoder_embed_dim"],
        mask_ratio=float(recipe["mask_ratio"]),
        norm_pix_loss=recipe["norm_pix_loss"],
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config).train()


def build_optimizer(model, recipe):
    """Fused AdamW; biases and norms are not decayed."""
    import torch

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": recipe["weight_decay"]},
        {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = recipe["base_learning_rate"] * recipe["batch_size"] / 256
    return torch.optim.AdamW(groups, lr=rate, betas=(recipe["beta_1"], recipe["beta_2"]), fused=True)


def train(training):
    """Seconds until the first step, until its end, and of each later step."""
    import torch

    recipe = training["recipe"]
    torch.set_num_threads(training["threads"])
    torch.manual_seed(recipe["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    model = build_model(recipe).to(device)
    optimizer = build_optimizer(model, recipe)
    built = time.perf_counter()
    pixels = torch.randn(recipe["batch_size"], recipe["channels"], *model.vit.embeddings.patch_embeddings.image_size)
    pixels = pixels.to(device)
    is_mixed = training["precision"] == "bfloat16"
    precision = torch.autocast(device, torch.bfloat16) if is_mixed else contextlib.nullcontext()
    ends = [time.perf_counter()]
    for _ in range(training["steps"]):
        with precision:
            loss = model(pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        if not math.isfinite(value):
            sys.exit(f"the loss of step {len(ends)} is {value}")
        ends.append(time.perf_counter())
    return {
        "build_seconds": built - start,
        "seconds_to_first_step": ends[1] - start,
        "step_seconds": [after - before for before, after in zip(ends[1:], ends[2:], strict=False)],
        "loss": value,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes():
    """The most memory that this process has had in RAM."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except FileNotFoundError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions():
    """For each package its version, or why it cannot be imported."""
    found, missing = {}, {}
    for name in PACKAGES:
        try:
            found[name] = importlib.import_module(name).__version__
        except ModuleNotFoundError as error:
            missing[name] = "not installed" if error.name == name else str(error)
        except Exception as error:  # one that was built for another Python, and the like
            missing[name] = str(error).partition("\n")[0]
    return {"versions": found, "missing": missing}


def main(words):
    if words[0] == "versions":
        return versions()
    with open(words[1]) as file:
        return train(json.load(file))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
