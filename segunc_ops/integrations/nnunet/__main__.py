"""``export nnUNet_extTrainer=$(python -m segunc_ops.integrations.nnunet)``."""

from . import TRAINER_FOLDER

print(TRAINER_FOLDER)
