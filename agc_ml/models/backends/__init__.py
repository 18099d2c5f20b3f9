"""Back ends that evaluate models: compiled forests, xgboost, ONNX Runtime, KServe."""
