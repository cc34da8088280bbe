"""The logic of lora-forge: plain functions and small classes. Modules in library/ are wiring around them."""
