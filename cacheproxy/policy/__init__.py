"""Pure mechanism: packs, plan, decide, admit, calibrate. The numbers live in packs."""
