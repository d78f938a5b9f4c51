// The one request that both generators send, and what they share: channels that are really separate, percentiles.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "grpc_service.grpc.pb.h"

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;

inline std::vector<int64_t> ParseShape(const char* text) {  // "1,10" → {1, 10}
  std::vector<int64_t> shape;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) shape.push_back(std::stoll(part));
  return shape;
}

// One FP32 input `x` of normal noise (seed 1) in raw_input_contents; output `y`.
inline ModelInferRequest MakeRequest(const std::string& model, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t dim : shape) count *= dim;
  std::string raw(count * sizeof(float), '\0');
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; i++) reinterpret_cast<float*>(&raw[0])[i] = normal(generator);

  ModelInferRequest request;
  request.set_model_name(model);
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype("FP32");
  for (int64_t dim : shape) input->add_shape(dim);
  request.add_outputs()->set_name("y");
  request.add_raw_input_contents(raw);
  return request;
}

// Channels with a connection each, retries off: a refusal must be seen, not hidden.
inline std::vector<std::unique_ptr<GRPCInferenceService::Stub>> Connect(const std::string& address, int channels) {
  std::vector<std::unique_ptr<GRPCInferenceService::Stub>> stubs;
  for (int i = 0; i < channels; i++) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt("forwardpass.channel", i);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10))) {
      std::fprintf(stderr, "no connection to %s within 10 s\n", address.c_str());
      std::exit(1);
    }
    stubs.push_back(GRPCInferenceService::NewStub(channel));
  }
  return stubs;
}

inline double Percentile(std::vector<float>& values, double fraction) {  // -1 when there are none
  if (values.empty()) return -1;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(fraction * values.size()))];
}

inline std::string JsonText(std::string text) {  // safe between quotes
  for (char& c : text)
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32) c = ' ';
  return text.substr(0, 200);
}
