#!/usr/bin/env bash
# build.sh OUT: builds closed_loop, open_loop and echo_server from the project's own .proto files into OUT, unless
# they are newer than every source. Needs Debian's g++, pkg-config, libgrpc++-dev and protobuf-compiler-grpc.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
proto=$(cd "$here/../../../proto" && pwd)
mkdir -p "$1"
cd "$1"

newest=$(ls -t "$here"/* "$proto"/grpc_service.proto "$proto"/model_config.proto | head -n 1)
if [ -x echo_server ] && [ echo_server -nt "$newest" ]; then exit 0; fi
for tool in g++ pkg-config protoc grpc_cpp_plugin; do
    command -v "$tool" >/dev/null || {
        echo "missing $tool: apt-get install g++ pkg-config libgrpc++-dev protobuf-compiler-grpc" >&2
        exit 1
    }
done

protoc -I "$proto" --cpp_out=. --grpc_out=. --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
    grpc_service.proto model_config.proto
flags="-O2 -std=c++17 -I. $(pkg-config --cflags grpc++ protobuf)"
for unit in model_config.pb grpc_service.pb grpc_service.grpc.pb; do
    g++ $flags -c "$unit.cc" -o "$unit.o"
done
for program in closed_loop open_loop echo_server; do
    g++ $flags "$here/$program.cc" ./*.o -o "$program" $(pkg-config --libs grpc++ protobuf) -lpthread
done
