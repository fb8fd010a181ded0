"""The folder that nnU-Net is told to look for trainers in; it imports what lies in it by name."""
