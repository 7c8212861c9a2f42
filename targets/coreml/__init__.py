"""Core ML packages for iOS 18 and macOS 15 on, built from the IR with coremltools' MIL builder."""
