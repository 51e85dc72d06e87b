"""The few hot operations, each a plain reference beside its fast version. See the modules; nothing is re-exported,
so that importing the package costs nothing."""
