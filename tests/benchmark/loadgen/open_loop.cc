// Open loop: Poisson arrivals at a fixed rate whatever the server does, each call with a deadline.
//
//   open_loop ADDRESS MODEL SHAPE RATE SECONDS DEADLINE_MS [CHANNELS]
//
// RATE is in calls a second. Latency counts from when a call was due, not from when it was sent, so a slow generator
// cannot hide a slow server. Prints one JSON line: offered and answered-in-time a second, latencies of the accepted
// and of the refused in milliseconds, counts by status code. Above 0.5, `generator_lag_s` says that the generator
// itself was the limit.
#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "request.h"

using Clock = std::chrono::steady_clock;

struct Call {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncResponseReader<ModelInferResponse>> reader;
  ModelInferResponse response;
  grpc::Status status;
  Clock::time_point due;
};

static const char* const kCodes[] = {
    "OK",        "CANCELLED",          "UNKNOWN",           "INVALID_ARGUMENT",    "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",        "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL",        "UNAVAILABLE",       "DATA_LOSS",           "UNAUTHENTICATED"};

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "open_loop ADDRESS MODEL SHAPE RATE SECONDS DEADLINE_MS [CHANNELS]\n");
    return 2;
  }
  const double rate = std::atof(argv[4]), seconds = std::atof(argv[5]), deadline_ms = std::atof(argv[6]);
  const int channels = argc > 7 ? std::atoi(argv[7]) : 8;
  const auto request = MakeRequest(argv[2], ParseShape(argv[3]));
  auto stubs = Connect(argv[1], channels);

  grpc::CompletionQueue queue;
  std::atomic<long> sent{0};
  std::atomic<bool> all_sent{false};
  long seen = 0, in_time = 0;
  std::map<int, long> codes;
  std::map<std::string, long> messages;
  std::vector<float> accepted_ms, refused_ms;
  std::thread reader([&] {
    void* tag;
    bool ok;
    while (!(all_sent && seen >= sent.load()) && queue.Next(&tag, &ok)) {
      std::unique_ptr<Call> call(static_cast<Call*>(tag));
      const float ms = std::chrono::duration<float, std::milli>(Clock::now() - call->due).count();
      codes[call->status.error_code()]++;
      if (call->status.ok()) {
        accepted_ms.push_back(ms);
        in_time += ms <= deadline_ms;
      } else {
        if (call->status.error_code() != grpc::DEADLINE_EXCEEDED) refused_ms.push_back(ms);
        messages[call->status.error_message().substr(0, 80)]++;
      }
      seen++;
    }
  });

  std::mt19937 generator(2);
  std::exponential_distribution<double> gap_s(rate);
  const auto start = Clock::now();
  double due_s = 0;
  for (long i = 0; (due_s += gap_s(generator)) < seconds; i++) {
    const auto due = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(due_s));
    std::this_thread::sleep_until(due);
    auto* call = new Call;
    call->due = due;
    call->context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::microseconds(static_cast<long>(deadline_ms * 1000)));
    call->reader = stubs[i % channels]->AsyncModelInfer(&call->context, request, &queue);
    sent++;
    call->reader->Finish(&call->response, &call->status, call);
  }
  const double lag_s = std::chrono::duration<double>(Clock::now() - start).count() - seconds;
  all_sent = true;
  while (seen < sent.load()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  queue.Shutdown();
  reader.join();

  std::printf(
      "{\"offered_per_s\":%.1f,\"in_time_per_s\":%.1f,\"generator_lag_s\":%.2f,\"accepted_p50_ms\":%.2f,"
      "\"accepted_p99_ms\":%.2f,\"refused_p50_ms\":%.2f,\"refused_p99_ms\":%.2f,\"codes\":{",
      sent.load() / seconds, in_time / seconds, lag_s, Percentile(accepted_ms, .5), Percentile(accepted_ms, .99),
      Percentile(refused_ms, .5), Percentile(refused_ms, .99));
  const char* comma = "";
  for (const auto& [code, count] : codes) {
    std::printf("%s\"%s\":%ld", comma, kCodes[code], count);
    comma = ",";
  }
  std::string commonest;
  long most = 0;
  for (const auto& [text, count] : messages)
    if (count > most) commonest = text, most = count;
  std::printf("},\"commonest_message\":\"%s\"}\n", JsonText(commonest).c_str());
  return 0;
}
