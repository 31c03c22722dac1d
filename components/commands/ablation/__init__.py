"""The comparison that the method stands or falls by."""
