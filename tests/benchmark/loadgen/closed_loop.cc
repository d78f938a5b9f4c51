// Closed loop: a fixed number of callers, each sending its next request when its last was answered.
//
//   closed_loop ADDRESS MODEL SHAPE CALLERS SECONDS WARMUP_SECONDS [CHANNELS]
//
// SHAPE is comma-separated with the batch first. CHANNELS defaults to (CALLERS + 5) / 6, at most 8. Prints one JSON
// line: rows answered a second, latencies in milliseconds, counts, and the generator's own CPU (cores).
#include <sys/resource.h>

#include <chrono>

#include "request.h"

using Clock = std::chrono::steady_clock;

struct Caller {
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::ClientAsyncResponseReader<ModelInferResponse>> reader;
  ModelInferResponse response;
  grpc::Status status;
  Clock::time_point sent;
  int channel;
};

static double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](timeval t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

static Clock::duration Seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
}

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "closed_loop ADDRESS MODEL SHAPE CALLERS SECONDS WARMUP_SECONDS [CHANNELS]\n");
    return 2;
  }
  const auto shape = ParseShape(argv[3]);
  const int callers = std::atoi(argv[4]);
  const double seconds = std::atof(argv[5]);
  const int channels = argc > 7 ? std::atoi(argv[7]) : std::min(8, (callers + 5) / 6);
  const auto request = MakeRequest(argv[2], shape);
  auto stubs = Connect(argv[1], channels);

  grpc::CompletionQueue queue;
  std::vector<Caller> all(callers);
  auto send = [&](Caller* caller) {
    caller->context = std::make_unique<grpc::ClientContext>();
    caller->response.Clear();
    caller->sent = Clock::now();
    caller->reader = stubs[caller->channel]->AsyncModelInfer(caller->context.get(), request, &queue);
    caller->reader->Finish(&caller->response, &caller->status, caller);
  };
  const auto start = Clock::now() + Seconds(std::atof(argv[6]));
  const auto end = start + Seconds(seconds);
  for (int i = 0; i < callers; i++) {
    all[i].channel = i % channels;
    send(&all[i]);
  }

  std::vector<float> latencies_ms;
  latencies_ms.reserve(1 << 20);
  long errors = 0;
  std::string message;
  double cpu_at_start = -1;
  int live = callers;
  void* tag;
  bool ok;
  while (live && queue.Next(&tag, &ok)) {
    auto* caller = static_cast<Caller*>(tag);
    const auto now = Clock::now();
    if (now >= start && cpu_at_start < 0) cpu_at_start = CpuSeconds();
    if (!caller->status.ok() && message.empty()) message = caller->status.error_message();
    if (now >= start && now < end) {
      if (caller->status.ok())
        latencies_ms.push_back(std::chrono::duration<float, std::milli>(now - caller->sent).count());
      else
        errors++;
    }
    if (now < end)
      send(caller);
    else
      live--;
  }
  std::printf(
      "{\"rows_per_s\":%.1f,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"answered\":%zu,"
      "\"errors\":%ld,\"generator_cores\":%.2f,\"message\":\"%s\"}\n",
      latencies_ms.size() * shape[0] / seconds, Percentile(latencies_ms, .5), Percentile(latencies_ms, .9),
      Percentile(latencies_ms, .99), Percentile(latencies_ms, 1), latencies_ms.size(), errors,
      (CpuSeconds() - cpu_at_start) / seconds, JsonText(message).c_str());
  return 0;
}
