"""The solvable theory of LoRA: parameters to predicted curves, with numpy and scipy only."""
