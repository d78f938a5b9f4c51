"""Networks. A frozen config states the architecture and builds it; `served` gives it its outside."""

from forwardpass_training.models.char_lstm import CharLstm, CharLstmConfig
from forwardpass_training.models.cnn import Cnn, CnnConfig
from forwardpass_training.models.dense import Dense, DenseConfig
from forwardpass_training.models.served import Served, activation, served

ModelConfig = DenseConfig | CnnConfig | CharLstmConfig

__all__ = [
    "CharLstm",
    "CharLstmConfig",
    "Cnn",
    "CnnConfig",
    "Dense",
    "DenseConfig",
    "ModelConfig",
    "Served",
    "activation",
    "served",
]
