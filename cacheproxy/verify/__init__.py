"""Whether the answer of one question may be served to another: rules, features and a learned verdict."""
