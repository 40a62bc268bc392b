"""Write a copy of a GGUF file with plain weights, so that llama.cpp computes with the same weights as other engines."""

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
_WRITTEN_ANYWAY = {"general.architecture", "general.file_type"}


def dequantized(source: Path, target: Path, dtype: str) -> Path:
    """Write `target` with the matrices of `source` in float32 or bfloat16, and return it.

    Vectors stay in float32, as in every GGUF file.
    """
    reader = GGUFReader(source)
    matrix_type, file_type = TYPES[dtype]
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(file_type)
    for name, field in reader.fields.items():
        if name not in _WRITTEN_ANYWAY and not name.startswith("GGUF."):
            item = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = matrix_type if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
