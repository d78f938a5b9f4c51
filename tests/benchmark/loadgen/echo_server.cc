// The ceiling: a bare asynchronous C++ gRPC server that answers ModelInfer with bytes of its input and runs no model.
//
//   echo_server PORT THREADS
//
// PORT 0 takes any free one; `port N` is printed when it serves.
// The answer is one FP32 output `y` of [batch, OUTPUTS] with OUTPUTS = 1 for inputs of up to 10 columns, else 10: the
// first bytes of the input, so that both messages have the size of a real classifier's.
#include <grpcpp/grpcpp.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "grpc_service.grpc.pb.h"

using grpc::ServerCompletionQueue;
using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using Service = GRPCInferenceService::AsyncService;

static void Answer(const ModelInferRequest& request, ModelInferResponse* response) {
  const auto& input = request.inputs(0);
  const std::string& raw = request.raw_input_contents(0);
  const int64_t batch = input.shape(0);
  const int64_t columns = batch ? static_cast<int64_t>(raw.size()) / 4 / batch : 0;
  const int64_t outputs = columns <= 10 ? 1 : 10;
  response->set_model_name(request.model_name());
  response->set_model_version("1");
  response->set_id(request.id());
  auto* output = response->add_outputs();
  output->set_name("y");
  output->set_datatype("FP32");
  output->add_shape(batch);
  output->add_shape(outputs);
  std::string bytes(batch * outputs * 4, '\0');
  std::memcpy(&bytes[0], raw.data(), std::min(bytes.size(), raw.size()));
  response->add_raw_output_contents(std::move(bytes));
}

class Call {
 public:
  Call(Service* service, ServerCompletionQueue* queue) : service_(service), queue_(queue), writer_(&context_) {
    service->RequestModelInfer(&context_, &request_, &writer_, queue, queue, this);
  }

  void Proceed(bool ok) {
    if (answered_ || !ok) {
      delete this;
      return;
    }
    new Call(service_, queue_);
    answered_ = true;
    if (request_.inputs_size() != 1 || request_.raw_input_contents_size() != 1 || !request_.inputs(0).shape_size()) {
      writer_.FinishWithError(grpc::Status(grpc::INVALID_ARGUMENT, "the echo takes one raw input"), this);
      return;
    }
    Answer(request_, &response_);
    writer_.Finish(response_, grpc::Status::OK, this);
  }

 private:
  Service* service_;
  ServerCompletionQueue* queue_;
  grpc::ServerContext context_;
  ModelInferRequest request_;
  ModelInferResponse response_;
  grpc::ServerAsyncResponseWriter<ModelInferResponse> writer_;
  bool answered_ = false;
};

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "echo_server PORT THREADS\n");
    return 2;
  }
  Service service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(std::string("127.0.0.1:") + argv[1], grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(-1);
  std::vector<std::unique_ptr<ServerCompletionQueue>> queues;
  for (int i = 0; i < std::atoi(argv[2]); i++) queues.push_back(builder.AddCompletionQueue());
  auto server = builder.BuildAndStart();
  if (!server || !port) {
    std::fprintf(stderr, "cannot listen on 127.0.0.1:%s\n", argv[1]);
    return 1;
  }
  std::vector<std::thread> threads;
  for (auto& queue : queues)
    threads.emplace_back([&] {
      for (int i = 0; i < 64; i++) new Call(&service, queue.get());
      void* tag;
      for (bool ok; queue->Next(&tag, &ok);) static_cast<Call*>(tag)->Proceed(ok);
    });
  std::printf("port %d\n", port);
  std::fflush(stdout);
  for (auto& thread : threads) thread.join();
}
