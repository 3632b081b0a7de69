"""What methods that allocate widths share: limits, tables of losses, linear programs."""
