"""In-context augmentation: which past answers help a small model, and when it may answer instead of the large one."""
