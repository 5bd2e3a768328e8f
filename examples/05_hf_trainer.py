"""Run: pip install transformers accelerate, then python examples/05_hf_trainer.py.
See: the Trainer's own step numbers, losses, evaluations and checkpoints on the run's page.
"""

import os
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gradwarden.integrations.huggingface import GradwardenCallback

STEPS = int(os.environ.get("STEPS", "60"))
LENGTH = 32

# A GPT-2 of 4 blocks that learns to spell this very file, letter by letter. Nothing to download.
text = Path(__file__).read_bytes()
starts = range(0, len(text) - LENGTH, 3)
rows = [torch.tensor(list(text[i : i + LENGTH])) for i in starts]
samples = [{"input_ids": row, "labels": row} for row in rows]

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
)

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            learning_rate=3e-3,
            logging_steps=1,  # each step has its loss
            logging_nan_inf_filter=False,  # a NaN loss is shown as what it is
            eval_strategy="steps",
            eval_steps=STEPS // 2,
            save_strategy="steps",
            save_steps=STEPS // 2,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=samples,
        eval_dataset=samples[::20],
        callbacks=[GradwardenCallback(name="spelling itself")],  # this is all
    )
    trainer.train()
