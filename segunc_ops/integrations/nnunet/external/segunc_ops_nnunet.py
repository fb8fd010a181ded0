"""Trainers for nnU-Net's search, which imports this file outside of any package."""

from segunc_ops.integrations.nnunet import *  # noqa: F403
