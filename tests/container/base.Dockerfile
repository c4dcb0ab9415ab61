# Base image with the layout of NVIDIA's tritonserver image: Debian 12 with its Python 3.11, and the server from the
# wheel of nvidia-pytriton. base.py prepares the build context.
FROM scratch
ADD debian.tar /
COPY tritonserver/ /opt/tritonserver/
COPY --chmod=0755 nvidia_entrypoint.sh /opt/nvidia/
RUN echo /opt/tritonserver/lib > /etc/ld.so.conf.d/tritonserver.conf && ldconfig
# The backend's stub process searches the folder of model.py first.
RUN python3 -m pip install --no-cache-dir --no-deps --no-compile --target /opt/tritonserver/backends/onnxruntime \
  --requirement /opt/tritonserver/backends/onnxruntime/requirements.txt
ENV PATH=/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /opt/tritonserver
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
