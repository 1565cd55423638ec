"""Networks of the sizes that users train on accelerators; their data is the user's own."""
