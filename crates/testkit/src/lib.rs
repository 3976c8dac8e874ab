//! Image builder, outside oracles, simulated device, reference model, scenario scripts.
