# A stand-in for NVIDIA's tritonserver image: Debian 12 with its own Python 3.11, and the server of
# nvidia-pytriton's wheel laid out as NVIDIA lays it out. base.py assembles the folder it is built from.
FROM scratch
ADD debian.tar /
COPY tritonserver/ /opt/tritonserver/
COPY --chmod=0755 nvidia_entrypoint.sh /opt/nvidia/
RUN echo /opt/tritonserver/lib > /etc/ld.so.conf.d/tritonserver.conf && ldconfig
# Beside the backend's model.py, where its stub looks first, whatever Python it runs.
RUN python3 -m pip install --no-cache-dir --no-deps --no-compile --target /opt/tritonserver/backends/onnxruntime \
  --requirement /opt/tritonserver/backends/onnxruntime/requirements.txt
ENV PATH=/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /opt/tritonserver
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
