"""Words every room uses: formats, kinds of paths, names asked for, work in other processes."""
