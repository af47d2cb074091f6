"""What the user chose: options of an optimizer, settings of a group, and the update that they ask for."""
