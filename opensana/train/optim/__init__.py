"""AdamW, Muon and CAME behind one interface, and the bytes that they hold."""
