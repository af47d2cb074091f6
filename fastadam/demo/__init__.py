"""`fastadam demo`: small trainings with three forms of Adam side by side."""
