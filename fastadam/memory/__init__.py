"""Where everything lies: arrays of every library, flat buffers, and the format of each."""
