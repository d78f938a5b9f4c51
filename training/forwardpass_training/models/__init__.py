"""Networks. A frozen config states the architecture and builds it; `served` gives it its outside."""

from forwardpass_training.models.char_lstm import CharLstm, CharLstmConfig
from forwardpass_training.models.cnn import Cnn, CnnConfig
from forwardpass_training.models.conv_stack import Conv, ConvStack, ConvStackConfig
from forwardpass_training.models.dense import Dense, DenseConfig
from forwardpass_training.models.model import ImageModelConfig, ModelConfig
from forwardpass_training.models.served import Served, activation, served

__all__ = [
    "CharLstm",
    "CharLstmConfig",
    "Cnn",
    "CnnConfig",
    "Conv",
    "ConvStack",
    "ConvStackConfig",
    "Dense",
    "DenseConfig",
    "ImageModelConfig",
    "ModelConfig",
    "Served",
    "activation",
    "served",
]
